"""Facts, log, registry and the wiring of drgn's own helpers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from drgn.helpers.linux.block import for_each_disk
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.fs import d_path, for_each_file, for_each_mount, mount_dst
from drgn.helpers.linux.mm import for_each_vma, totalram_pages, virt_to_page
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.printk import get_dmesg
from drgn.helpers.linux.sched import cpu_curr, loadavg
from drgn.helpers.linux.slab import find_slab_cache, for_each_slab_cache, slab_cache_usage
from drgn.helpers.linux.swap import for_each_swap_info, swap_file_path

from images import fixture, unpack
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.linux.info import _taint
from kvmd.images.registry import open_image


def test_facts_are_what_the_guest_said(dump: Any) -> None:
    info, truth = dump.image.info(), dump.truth
    for name in ("release", "version", "machine", "nodename", "banner", "page_size", "cpus_online"):
        assert getattr(info, name) == truth[name]
    assert info.format == ("elf" if dump.name.endswith("elfd") else "kdump-raw")
    assert (info.symbols, info.types, info.taint, info.live) == ("kallsyms", "btf", "", False)
    assert 0 <= info.uptime_ns - truth["boottime_ns"] < 10 * 10**9
    assert 0 <= info.time_ns - truth["realtime_ns"] < 10 * 10**9
    assert [round(x, 2) for x in info.load_average] == [float(x) for x in truth["loadavg"].split()[:3]]
    assert info.kaslr_offset == truth["kallsyms"]["_text"] - 0xFFFFFFFF81000000
    total = int(next(line for line in truth["meminfo"].splitlines() if line.startswith("MemTotal")).split()[1])
    assert info.memory_bytes == total * 1024
    panicked = dump.name.startswith(("kdump", "debian"))
    assert info.HasField("panic_message") is panicked
    assert not panicked or "sysrq triggered crash" in info.panic_message


class Kernel:
    """A kernel whose tainted_mask is given."""

    def __init__(self, mask: int) -> None:
        self.memory = self
        self.mask = mask

    def address(self, name: str) -> int:
        return len(name)

    def number(self, _address: int) -> int:
        return self.mask


@pytest.mark.parametrize(("mask", "letters"), [(0, ""), (1, "P"), (1 << 12 | 1 << 13, "GOE"), (1 << 9 | 1, "PW")])
def test_taint_letters(mask: int, letters: str) -> None:
    assert _taint(Kernel(mask)) == {"taint": letters}  # type: ignore[arg-type]


def test_the_log_is_drgns(dump: Any) -> None:
    records = list(dump.image.log())
    assert len(records) > 200
    assert records[0].sequence or dump.truth["banner"].encode() in records[0].text
    assert [r.sequence for r in records] == sorted(r.sequence for r in records)
    dmesg = get_dmesg(dump.image.kernel.prog)
    assert all(line in dmesg for record in records for line in record.text.split(b"\n"))
    assert all(0 <= r.level <= 7 for r in records)


def test_drgns_helpers_work_without_debuginfo(debian: Any) -> None:
    prog, truth = debian.image.kernel.prog, debian.truth
    init = find_task(prog, 1)
    assert list(for_each_online_cpu(prog)) == [0, 1]
    modules = [m.name.string_().decode() for m in for_each_module(prog)]
    assert modules == [line.split()[0] for line in truth["modules"].splitlines()]
    assert {b"/", b"/proc", b"/sys", b"/dev"} <= {mount_dst(m) for m in for_each_mount(prog)}
    assert len(list(for_each_slab_cache(prog))) > 100
    used = slab_cache_usage(find_slab_cache(prog, "task_struct"))
    assert used.num_objs - used.free_objs >= len(list(for_each_task(prog)))
    assert d_path(dict(for_each_file(init))[0].f_path) == b"/dev/console"
    assert {swap_file_path(s) for s in for_each_swap_info(prog)} == {b"/dev/vda", b"/mnt/swapfile"}
    assert [f"{x:.2f}" for x in loadavg(prog)] == truth["loadavg"].split()[:3]
    assert {d.disk_name.string_() for d in for_each_disk(prog)} >= {b"vda", b"vdb"}
    assert init.mm.map_count == len(list(for_each_vma(init.mm)))
    assert totalram_pages(prog) * 4096 == debian.image.info().memory_bytes
    assert cpu_curr(prog, 1).pid.value_() in {1, *truth["pids_at_end"]}
    assert per_cpu(prog["runqueues"], 0).cpu == 0
    assert virt_to_page(init).value_() % prog.type("struct page").size == prog["vmemmap"].value_() % 64
    schedule = debian.image.symbols(["schedule"])[0].value
    assert prog.symbol("schedule").address == schedule
    assert prog.symbol(schedule + 4).name == "schedule"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY_FILE),
        (b"hello, world\n" * 1000, Reason.UNSUPPORTED_FORMAT),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x02\0" + b"\0" * 100, Reason.UNSUPPORTED_FORMAT),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x04\0", Reason.TRUNCATED_IMAGE),
        (b"KDUMP   ", Reason.TRUNCATED_IMAGE),
        (b"KDUMP   " + b"\0" * 9000, Reason.CORRUPT_IMAGE),
        (b"makedumpfile\0\0\0\0", Reason.TRUNCATED_IMAGE),
        (b"makedumpfile\0\0\0\0" + b"\0" * 4080 + b"\xff" * 16, Reason.CORRUPT_IMAGE),
    ],
)
def test_what_is_no_image(from_bytes: Any, data: bytes, reason: Reason) -> None:
    with pytest.raises(KvmError) as caught:
        from_bytes(data)
    assert caught.value.reason is reason
    assert caught.value.metadata["path"] == "core0"


def test_what_a_dump_can_not_do() -> None:
    fd = os.open(fixture("micro/raw").path, os.O_RDONLY)
    try:
        for files in (Files(None), Files(File(fd, "raw"), writable=True)):
            with pytest.raises(KvmError) as caught:
                open_image(files)
            assert caught.value.reason is Reason.UNSUPPORTED
    finally:
        os.close(fd)


AFTER = """
import os, sys
from kvmd.images.base import File, Files
from kvmd.images.registry import open_image
from kvmd.v1 import process_pb2
fd = os.open(sys.argv[1], os.O_RDONLY)
used = []
sys.addaudithook(lambda event, args: event in ("open", "import", "os.listdir", "subprocess.Popen", "socket.connect")
                 and used.append((event, args[0])))
image = open_image(Files(File(fd, "core")))
list(image.processes(process_pb2.GetProcsRequest(arguments=True, threads=True)))
image.info(), list(image.log()), image.symbols(["init_task", "no_such"])
assert not used, used
"""


def test_nothing_is_opened_or_imported_once_the_files_are_there() -> None:
    path = fixture("debian-6.1-panic/vmcore.kdump").path
    environment = {**os.environ, "DRGN_PLUGINS": "evil=/nonexistent/plugin.py"}
    ran = subprocess.run([sys.executable, "-c", AFTER, path], capture_output=True, env=environment, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


def test_the_fixtures_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = unpack("hole", "vmcore.kdump")
    inode = first.stat().st_ino
    assert unpack("hole", "vmcore.kdump") == first
    assert first.stat().st_ino == inode
    assert [p.name for p in first.parent.iterdir()] == ["vmcore.kdump"]
    assert len(list(first.parent.parent.iterdir())) == 1
