"""Which files of the running kernel are opened, why they can't be, and that none is left open."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmd import live
from kvmd.errors import KvmError, Reason
from kvmd.handles.pool import ImageFiles
from kvmd.images.base import Kind
from kvmd.opener import OpenedFile


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's files that matter here."""
    for name in ("proc/kcore", "proc/kallsyms", "proc/iomem", "proc/swaps", "dev/mem", "sys/kernel/vmcoreinfo"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for name in ("vmlinux", "aaa", "loop"):
        path = tmp_path / "sys/kernel/btf" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    lockdown(tmp_path, "none")
    return tmp_path


def lockdown(root: Path, level: str) -> None:
    path = root / "sys/kernel/security/lockdown"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = (f"[{word}]" if word == level else word for word in ("none", "integrity", "confidentiality"))
    path.write_text(" ".join(words) + "\n")


def opened(root: Path, kind: Kind, writable: bool = False) -> dict[str, str]:
    """Role and path of each file; all are closed."""
    before = len(os.listdir("/proc/self/fd"))
    with ExitStack() as stack:
        files = [(role, stack.enter_context(file)) for role, file in live.open_files(kind, writable, root=str(root))]
        found = {role: file.path for role, file in files}
        for role, file in files:
            assert os.readlink(f"/proc/self/fd/{file.fd}") == f"{root}{found[role]}"
            assert not os.get_inheritable(file.fd)
    assert len(os.listdir("/proc/self/fd")) == before
    return found


COMMON = {
    "kallsyms": "/proc/kallsyms",
    "vmcoreinfo": "/sys/kernel/vmcoreinfo",
    "iomem": "/proc/iomem",
    "swaps": "/proc/swaps",
    "btf/vmlinux": "/sys/kernel/btf/vmlinux",
    "btf/aaa": "/sys/kernel/btf/aaa",
    "btf/loop": "/sys/kernel/btf/loop",
}


@pytest.mark.parametrize(
    ("kind", "writable", "wanted"),
    [
        (Kind.LIVE, False, {"core": "/proc/kcore"} | COMMON),
        (Kind.LIVE, True, {"core": "/proc/kcore", "mem": "/dev/mem"} | COMMON),
        (Kind.MEM, False, {"core": "/dev/mem", "kcore": "/proc/kcore"} | COMMON),
        (Kind.MEM, True, {"core": "/dev/mem", "mem": "/dev/mem", "kcore": "/proc/kcore"} | COMMON),
        (Kind.PROCFS, False, {"proc": "/proc"}),
    ],
)
def test_roles(root: Path, kind: Kind, writable: bool, wanted: dict[str, str]) -> None:
    assert opened(root, kind, writable) == wanted


def test_only_mem_is_open_for_writing(root: Path) -> None:
    for role, file in live.open_files(Kind.MEM, True, root=str(root)):
        with file:
            flags = os.O_RDONLY if role != "mem" else os.O_RDWR
            with open(f"/proc/self/fdinfo/{file.fd}", encoding="ascii") as info:
                line = next(line for line in info if line.startswith("flags:"))
            assert int(line.split()[1], 8) & os.O_ACCMODE == flags


def test_what_is_missing_is_left_out(root: Path) -> None:
    for path in ("proc/kallsyms", "proc/swaps", "sys/kernel/vmcoreinfo", "proc/iomem"):
        (root / path).unlink()
    for path in ("vmlinux", "aaa", "loop"):
        (root / "sys/kernel/btf" / path).unlink()
    (root / "sys/kernel/btf").rmdir()
    assert opened(root, Kind.LIVE) == {"core": "/proc/kcore"}
    (root / "proc/kcore").unlink()
    assert opened(root, Kind.MEM) == {"core": "/dev/mem"}


def swaps(root: Path, *names: str) -> list[str]:
    """The paths of the swap areas that are opened, of a /proc/swaps that lists these."""
    lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority", *(f"{name} file\t4\t0\t-2" for name in names)]
    (root / "proc/swaps").write_text("\n".join(lines) + "\n")
    found = []
    for role, file in live.open_files(Kind.LIVE, False, root=str(root)):
        with file:
            if role == "swap":
                with open(f"/proc/self/fdinfo/{file.fd}", encoding="ascii") as info:
                    flags = int(next(line for line in info if line.startswith("flags:")).split()[1], 8)
                assert flags & os.O_ACCMODE == os.O_RDONLY
                assert flags & os.O_DIRECT  # past the page cache
                found.append(file.path)
    return found


def test_swap_areas(root: Path) -> None:
    for name in ("one", "with space", "back\\slash"):
        (root / name).write_bytes(bytes(4096))
    assert swaps(root, "/one", "/with\\040space", "/back\\134slash") == ["/one", "/with space", "/back\\slash"]


def test_what_is_no_swap_area_is_left_out(root: Path) -> None:
    (root / "one").write_bytes(bytes(4096))
    (root / "link").symlink_to("one")
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    assert swaps(root, "/one", "/link", "/fifo", "/folder", "/gone", "one", "/one\\040(deleted)", "") == ["/one"]
    assert len(swaps(root, *["/one"] * 100)) == 32


def test_the_number_of_files_is_bounded(root: Path) -> None:
    for number in range(300):
        (root / f"sys/kernel/btf/module{number}").touch()
    found = opened(root, Kind.MEM, writable=True)
    assert "btf/vmlinux" in found
    assert len(found) < 200


def open_all(root: Path, kind: Kind, writable: bool) -> None:
    with ExitStack() as stack:
        for _, file in live.open_files(kind, writable, root=str(root)):
            stack.enter_context(file)


def failure(root: Path, kind: Kind = Kind.LIVE, writable: bool = False) -> KvmError:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError) as caught:
        open_all(root, kind, writable)
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value


@pytest.mark.parametrize(
    ("kind", "writable", "path", "word"),
    [
        (Kind.LIVE, False, "proc/kcore", "CONFIG_PROC_KCORE"),
        (Kind.LIVE, True, "dev/mem", "CONFIG_DEVMEM"),
        (Kind.MEM, False, "dev/mem", "PrivateDevices"),
    ],
)
def test_no_source(root: Path, kind: Kind, writable: bool, path: str, word: str) -> None:
    (root / path).unlink()
    why = failure(root, kind, writable)
    assert why.reason is Reason.NO_LIVE_SOURCE
    assert word in why.message
    assert why.metadata["path"] == f"/{path}"


def test_a_hidden_kcore(root: Path) -> None:
    (root / "proc/kcore").write_text("")
    why = failure(root)
    assert why.reason is Reason.NO_LIVE_SOURCE
    assert "ProtectKernelTunables" in why.message


@pytest.mark.parametrize(
    ("path", "level", "number", "reason", "word"),
    [
        ("/proc/kcore", "none", errno.EPERM, Reason.SOURCE_ACCESS, "CAP_SYS_RAWIO"),
        ("/proc/kcore", "none", errno.EACCES, Reason.SOURCE_ACCESS, "CAP_DAC_OVERRIDE"),
        ("/proc/kcore", "integrity", errno.EPERM, Reason.SOURCE_ACCESS, "CAP_SYS_RAWIO"),
        ("/proc/kcore", "confidentiality", errno.EPERM, Reason.LOCKDOWN, "confidentiality"),
        ("/proc/kcore", "confidentiality", errno.EACCES, Reason.SOURCE_ACCESS, "root"),
        ("/dev/mem", "integrity", errno.EPERM, Reason.LOCKDOWN, "integrity"),
        ("/dev/mem", "none", errno.EIO, Reason.SOURCE_IO, "Input/output"),
    ],
)
def test_refusals(  # noqa: PLR0917
    root: Path, monkeypatch: pytest.MonkeyPatch, path: str, level: str, number: int, reason: Reason, word: str
) -> None:
    lockdown(root, level)
    real = os.open

    def refusing(name: str, flags: int, *rest: int) -> int:
        if name == f"{root}{path}":
            raise OSError(number, os.strerror(number))
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    why = failure(root, Kind.LIVE if path == "/proc/kcore" else Kind.MEM)
    assert why.reason is reason
    assert word in why.message
    assert why.errno == number


def test_no_lockdown_at_all(root: Path) -> None:
    (root / "sys/kernel/security/lockdown").unlink()
    (root / "proc/kcore").unlink()
    assert failure(root).reason is Reason.NO_LIVE_SOURCE


def test_a_dump_is_not_opened_here(root: Path) -> None:
    assert failure(root, Kind.DUMP).reason is Reason.BAD_ARGUMENT


def test_the_pools_key(tmp_path: Path) -> None:
    """The running kernel's own files never tell one opening from another; a dump's do, and so does an execfile."""

    def file(name: str, text: str) -> OpenedFile:
        path = tmp_path / name
        path.write_text(text)
        return OpenedFile(0, name, path.stat())

    first = (("core", file("kcore", "1")), ("exec", file("vmlinux", "1")))
    again = (("core", file("kcore", "22")), first[1])
    other = (first[0], ("exec", file("vmlinux", "22")))
    keys = [ImageFiles(Kind.LIVE, files).key for files in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]
    assert len({ImageFiles(kind, first, writable).key for kind in Kind for writable in (False, True)}) == 2 * len(Kind)
    assert ImageFiles(Kind.DUMP, first).key != ImageFiles(Kind.DUMP, again).key
