"""The Python face's calls for what the kernel counts, its pages, and its memory's other faces."""

from __future__ import annotations

import contextlib

import pytest

import libkvm
from kvmd.errors import Reason
from kvmd.v1 import memory_pb2
from unit.client.fake import BASE, MEMORY, MIB, USER, USER_MEMORY
from unit.client.fake_system import PAGES, offset


@pytest.fixture
def writable(client):
    with client.open(write=True) as opened:
        yield opened


def test_load_average(kernel):
    assert kernel.load_average() == (0.5, 0.25, 0.125)


def test_cpu_times(kernel):
    total, first, second = kernel.cpu_times()

    assert (total.cpu, first.cpu, second.cpu) == (-1, 0, 1)
    assert (total.user_ns, total.guest_nice_ns) == (1_019_999_999, 10_019_999_999)


def test_cpus(kernel, fake):
    assert kernel.cpus() == [libkvm.Cpu(n, n < 2, offset(n) % 2**64, None) for n in (0, 1, 3)]
    assert kernel.max_cpus() == 4
    fake.cpu_offsets = False
    assert kernel.cpus()[0].offset is None


def test_swap_areas(kernel):
    partition, file = kernel.swap_areas()

    assert partition == libkvm.SwapArea(
        "/dev/vda", 0, "partition", 8192, 4096, -2, "00112233-4455-6677-8899-aabbccddeeff", "one", "vda.img"
    )
    assert file.path == "/swap\x1b\udcff"


def test_files_of_all_of_one_and_of_none(kernel):
    assert [(file.pid, file.path) for file in kernel.files()] == [(1, "/dev/null"), (30, "socket:[7]")]
    assert kernel.files(30) == kernel.files(pid=kernel.processes(pid=30)[0])
    [file] = kernel.files(1)
    assert (file.fd, file.type, file.flags, file.position, file.uid, file.file_address) == (
        3,
        "character",
        2,
        5,
        4,
        None,
    )
    with pytest.raises(libkvm.ProcessError):
        kernel.files(77)
    with pytest.raises(libkvm.RequestError):
        kernel.files(2**31)


def test_threads(kernel):
    assert [thread.pid for thread in kernel.threads(1)] == [1, 9]
    assert kernel.threads(kernel.processes(pid=30)[0])[0].pid == 30
    with pytest.raises(libkvm.ProcessError) as caught:
        kernel.threads(77)
    assert caught.value.reason is Reason.NO_SUCH_PROCESS


class TestPages:
    def test_all(self, kernel):
        pages = list(kernel.pages())

        assert len(pages) == PAGES
        assert pages[0] == libkvm.Page(BASE, 0, 4096, libkvm.VM_PROT_READ, None, True)
        assert (pages[3].present, pages[1].protection, pages[1].direct_address) == (False, 3, 0xFFFF888000001000)

    def test_the_start_is_sent(self, kernel, fake):
        next(iter(kernel.pages(BASE)))

        assert fake.seen[-1][1].start == BASE
        with pytest.raises(libkvm.RequestError):
            next(iter(kernel.pages(-1)))

    def test_leaving_early_cancels_the_walk(self, kernel, fake):
        with contextlib.closing(kernel.pages()) as pages:
            next(pages)

        assert fake.walk_ended.wait(10)
        assert fake.pages_sent < PAGES


class TestWrite:
    @pytest.mark.parametrize("size", [0, 1, MIB, 2 * MIB + 5])
    def test_whole(self, writable, fake, size):
        assert writable.write(BASE + 3, b"\xee" * size) == size
        assert fake.memory == MEMORY[:3] + b"\xee" * size + MEMORY[3 + size :]
        assert [name for name, _ in fake.seen].count("Write") == max(1, -(-size // MIB))

    def test_any_buffer(self, writable, fake):
        writable.write(BASE, memoryview(bytearray(b"abcd")).cast("H"))

        assert fake.memory[:5] == b"abcd" + MEMORY[4:5]

    @pytest.mark.parametrize("before", [0, 5, MIB + 7])
    def test_a_fault_says_where_and_how_much_was_written(self, writable, fake, before):
        end = BASE + len(MEMORY)
        with pytest.raises(libkvm.FaultError) as caught:
            writable.write(end - before, b"z" * (before + 9))

        assert (caught.value.address, caught.value.metadata["written"]) == (end, str(before))
        assert fake.memory.endswith(b"z" * before)
        assert len(fake.memory) == len(MEMORY)

    def test_dumps_and_read_only_kernels_are_not_written(self, client, kernel):
        with pytest.raises(libkvm.UnsupportedError) as dead:
            kernel.write(BASE, b"")
        with client.open() as live, pytest.raises(libkvm.AccessError) as read_only:
            live.write(BASE, b"x")

        assert (dead.value.reason, read_only.value.reason) == (Reason.WRITE_DEAD, Reason.WRITE_READ_ONLY)

    def test_numbers_out_of_range(self, writable):
        with pytest.raises(libkvm.RequestError):
            writable.write(2**64, b"x")
        with pytest.raises(libkvm.RequestError):
            writable.write(-1, b"")


class TestUserMemory:
    def test_every_way_of_reading_says_whose_it_is(self, kernel, fake):
        buffer = bytearray(6)
        kernel.readinto(USER, buffer, pid=1)

        assert kernel.read(USER, 14, pid=1) == b"memory of init"
        assert buffer == b"memory"
        assert kernel.readv([(USER, 12)], pid=30)[0].data == USER_MEMORY[30]
        with pytest.raises(libkvm.FaultError):
            b"".join(kernel.stream(USER, 2 * MIB, pid=1))
        _, _, ranges, read, stream = (request for _, request in [("", None), *fake.seen[-4:]])
        assert (read.ranges[0].pid, read.ranges[0].space) == (30, memory_pb2.ADDRESS_SPACE_USER)
        assert (ranges.pid, stream.pid, stream.space) == (1, 1, memory_pb2.ADDRESS_SPACE_USER)

    def test_failures(self, kernel):
        for pid, reason in ((2, Reason.NO_USER_MEMORY), (77, Reason.NO_SUCH_PROCESS)):
            with pytest.raises(libkvm.ProcessError) as caught:
                kernel.read(USER, 1, pid=pid)
            assert caught.value.reason is reason
        with pytest.raises(TypeError, match="not both"):
            kernel.read(USER, 1, pid=1, physical=True)
        with pytest.raises(libkvm.RequestError):
            kernel.read(USER, 1, pid=2**31)
