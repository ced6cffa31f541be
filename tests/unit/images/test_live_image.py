"""The running kernel's reader over a dump made up as /proc/kcore and /dev/mem: it reads what the dump's reader does."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from images import fixture, unpack
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files, Kind
from kvmd.images.linux import elf
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.live_image import LiveImage
from kvmd.images.linux.live_processes import in_one_memory
from kvmd.images.linux.live_steady import alike, each_process, steady
from kvmd.images.linux.source import FileSource
from kvmd.images.registry import open_image
from kvmd.v1 import memory_pb2, process_pb2, system_pb2

DUMP = "qemu/vmcore.elfd"
PAGE = 4096


class Machine:
    """The files of a running kernel, made of a dump."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fds: list[int] = []
        path, self.truth = fixture(DUMP)
        self.dump_fd = self.keep(os.open(path, os.O_RDONLY))
        image = open_image(Files(File(self.dump_fd, "dump")))
        assert isinstance(image, LinuxImage)
        self.dump = image
        source = FileSource(self.dump_fd)
        head = elf.header(source)
        segments = elf.segments(source, head)
        self.loads = [s for s in segments if s.type == elf.PT_LOAD and s.filesz]
        self.note = b"".join(elf.note_data(source, segments))
        base = image.read(self.symbol("page_offset_base"), 8, memory_pb2.ADDRESS_SPACE_KERNEL)
        self.direct = struct.unpack("<Q", base)[0]

    def keep(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def symbol(self, name: str) -> int:
        return self.dump.symbols([name])[0].value

    def file(self, name: str, data: bytes) -> File:
        path = self.directory / name
        path.write_bytes(data)
        return File(self.keep(os.open(path, os.O_RDWR)), f"/{name}")

    def kcore(self) -> File:
        """The dump's memory behind /proc/kcore's headers."""
        at = 64 + 56 * (len(self.loads) + 1)
        rows = [struct.pack("<IIQQQQQQ", elf.PT_NOTE, 0, at, 0, 0, len(self.note), 0, 0)]
        body = bytearray(self.note)
        for load in self.loads:
            place = (at + len(body), self.direct + load.paddr, load.paddr, load.filesz, load.filesz, PAGE)
            rows.append(struct.pack("<IIQQQQQQ", elf.PT_LOAD, 7, *place))
            body += os.pread(self.dump_fd, load.filesz, load.offset)
        head = struct.pack("<HHIQQQIHHHHHH", elf.ET_CORE, 62, 1, 0, 64, 0, 0, 64, 56, len(rows), 0, 0, 0)
        return self.file("kcore", b"\x7fELF\2\1\1" + b"\0" * 9 + head + b"".join(rows) + bytes(body))

    def mem(self) -> File:
        """The dump's memory, each byte at its address."""
        file = self.file("mem", b"")
        for load in self.loads:
            os.pwrite(file.fd, os.pread(self.dump_fd, load.filesz, load.offset), load.paddr)
        return file

    def iomem(self) -> File:
        lines = (f"{load.paddr:08x}-{load.paddr + load.filesz - 1:08x} : System RAM\n" for load in self.loads)
        return self.file("iomem", "".join(lines).encode())

    def kallsyms(self) -> File:
        return self.file("kallsyms", unpack("qemu", "kallsyms").read_bytes())


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    for fd in made.fds:
        os.close(fd)


def live(files: Files) -> LiveImage:
    image = open_image(files)
    assert isinstance(image, LiveImage)
    return image


@pytest.fixture(scope="module")
def by_kcore(machine: Machine) -> LiveImage:
    return live(Files(machine.kcore(), kind=Kind.LIVE, extra={"kallsyms": machine.kallsyms()}))


@pytest.fixture(scope="module")
def by_mem(machine: Machine) -> LiveImage:
    mem = machine.mem()
    extra = {"iomem": machine.iomem(), "kcore": machine.kcore(), "mem": mem, "kallsyms": machine.kallsyms()}
    return live(Files(mem, kind=Kind.MEM, writable=True, extra=extra))


@pytest.fixture(params=["by_kcore", "by_mem"])
def image(request: pytest.FixtureRequest) -> LiveImage:
    found: LiveImage = request.getfixturevalue(request.param)
    return found


KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL


def test_info(image: LiveImage, machine: Machine) -> None:
    found, wanted = image.info(), machine.dump.info()
    assert found.live
    assert found.format in ("kcore", "mem")
    assert (found.symbols, found.types) == ("kallsyms", "btf")
    assert (found.release, found.banner, found.cpus_online) == (wanted.release, wanted.banner, wanted.cpus_online)
    assert not found.panic_message
    assert image.kernel_name() == "kallsyms"


@pytest.mark.parametrize("name", ["linux_banner", "init_task", "swapper_pg_dir", "jiffies"])
def test_memory(image: LiveImage, machine: Machine, name: str) -> None:
    address = machine.symbol(name)
    assert image.read(address, 512, KERNEL) == machine.dump.read(address, 512, KERNEL)
    place = machine.dump.kernel.memory.translate(address).physical
    for at, space in ((place, PHYSICAL), (machine.direct + place, KERNEL)):
        assert image.read(at, 512, space) == machine.dump.read(address, 512, KERNEL)


def test_faults(image: LiveImage, machine: Machine) -> None:
    end = max(load.paddr + load.filesz for load in machine.loads)
    for address, length, space, reason, at in (
        (0, 8, KERNEL, Reason.NOT_MAPPED, 0),
        (1 << 62, 8, PHYSICAL, Reason.BEYOND_DUMP, 1 << 62),
        (end - 4, 8, PHYSICAL, Reason.BEYOND_DUMP, end),
    ):
        with pytest.raises(KvmError) as caught:
            image.read(address, length, space)
        assert (caught.value.reason, caught.value.address) == (reason, at)


@pytest.mark.parametrize("threads", [False, True])
def test_processes(image: LiveImage, machine: Machine, threads: bool) -> None:
    request = process_pb2.GetProcsRequest(threads=threads, arguments=not threads)
    ours, theirs = list(image.processes(request)), list(machine.dump.processes(request))
    for process in (*ours, *theirs):
        process.arguments.error.ClearField("message")  # of a dump the image is asked for, here the area is named
    assert ours == theirs


def test_one_process(image: LiveImage, machine: Machine) -> None:
    request = process_pb2.GetProcsRequest(filter=process_pb2.ProcessFilter.PROCESS_FILTER_PID, argument=1)
    (process,) = image.processes(request)
    assert process.pid == 1
    kind = process_pb2.STRINGS_KIND_ENVIRONMENT
    assert image.strings(1, kind, 0) == machine.dump.strings(1, kind, 0)
    with pytest.raises(KvmError) as caught:
        image.strings(99999, kind, 0)
    assert caught.value.reason is Reason.NO_SUCH_PROCESS


def test_an_unknown_filter(image: LiveImage) -> None:
    with pytest.raises(KvmError) as caught:
        list(image.processes(process_pb2.GetProcsRequest(filter=99)))  # type: ignore[arg-type]
    assert caught.value.reason is Reason.BAD_ARGUMENT


def test_symbols(image: LiveImage, machine: Machine) -> None:
    names = ["init_task", "jiffies", "schedule", "no_such_symbol"]
    found = [(s.name, s.found, s.value, s.n_type, s.module) for s in image.symbols(names)]
    assert found == [(s.name, s.found, s.value, s.n_type, s.module) for s in machine.dump.symbols(names)]


@pytest.mark.parametrize(
    "call",
    [
        lambda image: image.load_average(),
        lambda image: image.cpu_times(),
        lambda image: image.cpus(),
        lambda image: image.swap_areas(),
        lambda image: list(image.log()),
        lambda image: list(image.files(1)),
        lambda image: list(image.files(0)),
    ],
)
def test_the_rest_of_the_calls(image: LiveImage, machine: Machine, call: Callable[[Any], Any]) -> None:
    assert call(image) == call(machine.dump)


def test_a_write(by_mem: LiveImage, by_kcore: LiveImage, machine: Machine) -> None:
    address = machine.symbol("panic_print")
    before = by_mem.read(address, 8, KERNEL)
    by_mem.write(address, b"12345678")
    assert by_mem.read(address, 8, KERNEL) == b"12345678"
    by_mem.write(address, before)
    with pytest.raises(KvmError) as caught:
        by_kcore.write(address, b"1")
    assert caught.value.reason is Reason.WRITE_READ_ONLY


def test_what_the_kernel_says_of_itself_in_memory(machine: Machine) -> None:
    """Without kallsyms and BTF among the files, both are looked for in memory, as in a dump."""
    image = live(Files(machine.kcore(), kind=Kind.LIVE))
    assert image.info().types == "btf"
    assert image.symbols(["init_task"])[0].value == machine.symbol("init_task")
    assert len(list(image.processes(process_pb2.GetProcsRequest()))) > 10


@pytest.mark.parametrize("iomem", [b"00000000-00000000 : System RAM\n", None])
def test_devmem_where_iomem_hides_its_addresses(machine: Machine, iomem: bytes | None) -> None:
    """/proc/kcore's headers say what is RAM, too: a daemon without CAP_SYS_ADMIN needs no /proc/iomem."""
    extra = {"kcore": machine.kcore()} | ({"iomem": machine.file("iomem3", iomem)} if iomem else {})
    image = live(Files(machine.mem(), kind=Kind.MEM, extra=extra))
    address = machine.symbol("linux_banner")
    assert image.read(address, 64, KERNEL) == machine.dump.read(address, 64, KERNEL)
    with pytest.raises(KvmError) as caught:
        image.read(0xFEE00000, 4, PHYSICAL)
    assert caught.value.reason is Reason.BEYOND_DUMP


def test_where_the_note_lies(machine: Machine) -> None:
    """/sys/kernel/vmcoreinfo gives the note's place where there is no /proc/kcore."""
    mem = machine.mem()
    place = machine.loads[-1].paddr + machine.loads[-1].filesz
    os.pwrite(mem.fd, machine.note, place)
    ram = os.pread(machine.iomem().fd, 1 << 16, 0) + f"{place:x}-{place + 0xFFFF:x} : System RAM\n".encode()
    where = machine.file("vmcoreinfo", f"{place:#018x} {len(machine.note):x}\n".encode())
    extra = {"iomem": machine.file("iomem2", ram), "vmcoreinfo": where}
    assert live(Files(mem, kind=Kind.MEM, extra=extra)).info().release == machine.dump.info().release


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({}, Reason.NO_LIVE_SOURCE),
        ({"iomem": b"0-0 : System RAM\n"}, Reason.NO_LIVE_SOURCE),
        ({"iomem": b"1000-ffffff : System RAM\n"}, Reason.NO_VMCOREINFO),
        ({"iomem": b"1000-ffffff : System RAM\n", "vmcoreinfo": b"nonsense\n"}, Reason.NO_VMCOREINFO),
        ({"iomem": b"1000-ffffff : System RAM\n", "vmcoreinfo": b"0x2000 1024\n"}, Reason.NO_VMCOREINFO),
    ],
)
def test_devmem_that_can_not_be_used(machine: Machine, extra: dict[str, bytes], reason: Reason) -> None:
    files = {role: machine.file(f"other-{role}", data) for role, data in extra.items()}
    mem = machine.file("empty", bytes(1 << 20))
    with pytest.raises(KvmError) as caught:
        live(Files(mem, kind=Kind.MEM, extra=files))
    assert caught.value.reason is reason


def test_a_process_that_never_stands_still(by_kcore: LiveImage, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = by_kcore._processes
    task, count = processes._task, iter(range(10**6))
    monkeypatch.setattr(processes, "_task", lambda address: task(address) | {"mm": next(count)})
    with pytest.raises(KvmError) as caught:
        processes.steady(processes.tasks.init)
    assert caught.value.reason is Reason.CHANGED


def test_user_memory(image: LiveImage, machine: Machine) -> None:
    user = memory_pb2.ADDRESS_SPACE_USER
    mm = machine.dump._processes.memory(1)
    start = machine.dump._strings._mm(mm)["arg_start"]
    assert isinstance(start, int)

    def outcome(one: LinuxImage) -> object:
        try:
            return one.read(start, 16, user, 1)
        except KvmError as failure:
            return failure.reason

    assert outcome(image) == outcome(machine.dump)


def test_a_page_that_moves_each_time(by_kcore: LiveImage, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = by_kcore._pages
    mm = machine.dump._processes.memory(1)
    known = machine.dump._strings._mm(mm)
    span, words = pages._span, iter(range(10**6))

    def moving(*args: Any) -> Any:
        found = span(*args)
        found.words = (found.words[0] | next(words) << 52, *found.words[1:])
        return found

    monkeypatch.setattr(pages, "_span", moving)
    with pytest.raises(KvmError) as caught:
        list(pages.read(mm, known["pgd"], known["arg_start"], 16))
    assert caught.value.reason is Reason.CHANGED


def test_memory_that_is_another_each_time() -> None:
    memories = iter(range(100))
    processes: Any = SimpleNamespace(memory=lambda pid: next(memories))
    with pytest.raises(KvmError) as caught:
        in_one_memory(processes, 1, lambda: b"somebody else's")
    assert caught.value.reason is Reason.CHANGED


def test_memory_that_was_exchanged_once() -> None:
    memories = iter([1, 2, 2, 2])
    processes: Any = SimpleNamespace(memory=lambda pid: next(memories))
    found = iter([b"torn", b"whole"])
    assert in_one_memory(processes, 1, lambda: next(found)) == b"whole"


def test_a_process_that_ends(by_kcore: LiveImage, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = by_kcore._processes
    task = processes._task
    monkeypatch.setattr(processes, "_task", lambda address: task(address) | {"thread_pid": 0})
    assert list(by_kcore.processes(process_pb2.GetProcsRequest())) == []


def test_steady_tries_again() -> None:
    failures = iter([Reason.CORRUPT_DATA, Reason.NOT_MAPPED])

    def read() -> str:
        for reason in failures:
            raise KvmError(reason, "torn")
        return "whole"

    assert steady("the list", read) == "whole"


@pytest.mark.parametrize(
    ("raised", "reason"), [(Reason.CORRUPT_DATA, Reason.CHANGED), (Reason.NO_TYPES, Reason.NO_TYPES)]
)
def test_steady_gives_up(raised: Reason, reason: Reason) -> None:
    def read() -> None:
        raise KvmError(raised, "torn")

    with pytest.raises(KvmError) as caught:
        steady("the list", read)
    assert caught.value.reason is reason


def test_only_what_both_readings_have() -> None:
    readings = iter([[1, 2, 3], [2, 3, 4]])
    found = alike(lambda: [system_pb2.OpenFile(fd=fd) for fd in next(readings)], ("fd",))
    assert [file.fd for file in found] == [2, 3]


def test_processes_that_end_have_no_files() -> None:
    def read(pid: int) -> list[system_pb2.OpenFile]:
        if pid == 2:
            raise KvmError(Reason.NO_SUCH_PROCESS, "gone")
        if pid == 3:
            raise KvmError(Reason.CHANGED, "too fast")
        return [system_pb2.OpenFile(pid=pid)]

    found = each_process([1, 2, 3, 4], read)
    assert [next(found).pid, next(found).pid] == [1, 4]
    with pytest.raises(KvmError) as caught:
        next(found)
    assert caught.value.reason is Reason.CHANGED
