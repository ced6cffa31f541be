"""Boots kernels of several ages, has each dumped, and tells what kvmd finds in the dump with no file beside it.

    python tests/guest/kernels.py boot CACHE [NAME...]          # dumps in CACHE/kernels, with truth and vmlinux
    python tests/guest/kernels.py table DIR... > docs/kernels.md

``setup CACHE`` must have run. A directory of ``table`` holds ``vmcore``, ``truth.json`` and ``kallsyms`` of the guest,
and ``vmlinux`` with DWARF of the same build: any kernel that was booted by other means can have one, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@dataclass(frozen=True)
class Kernel:
    """A Debian kernel to boot.

    :ivar package: which, with ``-dbg`` in the same suite.
    :ivar device: whether QEMU has the device that takes VMCOREINFO into dumps.
    :ivar wipe: whether VMCOREINFO is taken out of the dump's memory, too.
    """

    suite: str
    package: str
    device: bool = True
    wipe: bool = False
    form: str = "elf"


_5_10, _6_1 = "linux-image-5.10.0-32-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"
KERNELS = {
    "5.10": Kernel("bullseye", _5_10),
    "5.10-no-device": Kernel("bullseye", _5_10, device=False, form="kdump-zlib"),
    "6.1": Kernel("bookworm", _6_1),
    "6.1-no-device": Kernel("bookworm", _6_1, device=False),
    "6.1-wiped": Kernel("bookworm", _6_1, device=False, wipe=True),
}


def boot(cache: Path, name: str) -> None:
    """Make a directory of one kernel's dump."""
    kernel = KERNELS[name]
    place, out = cache / "kernels" / kernel.package, cache / "kernels" / name
    subprocess.run([HERE / "fetch_kernel", kernel.suite, kernel.package, place], check=True)
    initrd = place / "initrd.gz"
    if not initrd.exists():
        subprocess.run([HERE / "initramfs", place, HERE / "inside" / "init", initrd], check=True)
    out.mkdir(parents=True, exist_ok=True)
    job = out / "job.sh"
    job.write_text(f"exec python3 /job/record.py /job/out {kernel.form}\n")
    words: list[str | Path] = [sys.executable, HERE / "boot.py", "--image", cache / "disk.img", "--out", out]
    words += ["--kernel", next((place / "boot").glob("vmlinuz-*")), "--initrd", initrd]
    words += ["--copy", HERE / "inside" / "record.py", *([] if kernel.device else ["--no-vmcoreinfo"]), job]
    for _ in range(2):  # in an emulator a kernel panics while it boots once in a while
        if subprocess.run(words, check=False).returncode == 0:
            break
    if kernel.wipe:
        wipe(out / "vmcore")
    (out / "vmlinux").unlink(missing_ok=True)
    (out / "vmlinux").symlink_to(place / "vmlinux")


def wipe(path: Path) -> None:
    """Take every VMCOREINFO text out of a file."""
    head = b"OSRELEASE="
    with path.open("r+b") as file:
        at = 0
        while data := os.pread(file.fileno(), 1 << 20, at):
            place = data.find(head)
            while place >= 0:
                os.pwrite(file.fileno(), bytes(len(head)), at + place)
                place = data.find(head, place + 1)
            at += len(data) - len(head) + 1 if len(data) > len(head) else len(data)


def table(directories: list[str]) -> Iterator[str]:
    """Give the document."""
    from kernel_checks import CHECKS, Subject

    yield HEAD
    yield "| kernel | " + " | ".join(CHECKS) + " |"
    yield "|---" * (len(CHECKS) + 1) + "|"
    for directory in directories:
        with Subject(Path(directory)) as subject:
            cells = [check(subject) for check in CHECKS.values()]
            yield f"| {Path(directory).name}: {subject.release} | " + " | ".join(cells) + " |"


HEAD = """# What dumps tell without a file beside them, kernel by kernel

Made by `python tests/guest/kernels.py table DIR...` of dumps of kernels that it booted (`boot`), or that were booted by
other means. Each cell says how many of the truth's items kvmd gives exactly so; the truth is the guest's own /proc, or
drgn's with the DWARF vmlinux of the same build. "VMCOREINFO": where it was found: the dump's note, its text in memory,
or made anew from kallsyms, the banner and the page tables. "First symbol": seconds from opening the file to the answer,
all scanning included. "Wiped": a dump whose memory holds no VMCOREINFO either, as of a kernel built without it.
"""


def main() -> None:
    """Boot, or print."""
    how, *names = sys.argv[1:]
    if how == "boot":
        for name in names[1:] or KERNELS:
            boot(Path(names[0]), name)
    else:
        for line in table(names):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
