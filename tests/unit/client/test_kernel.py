"""The Python face's calls on an opened image."""

from __future__ import annotations

import pytest

import libkvm
from kvmd.errors import Reason, error
from kvmd.v1 import memory_pb2
from unit.client.fake import BASE, MEMORY, MIB


@pytest.mark.parametrize("length", [0, 1, MIB, MIB + 1, 3 * MIB])
def test_reads_of_any_size(kernel, length):
    assert kernel.read(BASE + 7, length) == MEMORY[7 : 7 + length]


def test_small_reads_are_one_call_and_large_ones_stream(kernel, fake):
    kernel.read(BASE, MIB)
    kernel.read(BASE, MIB + 1)

    assert [name for name, _ in fake.seen if name.startswith("Read")] == ["Read", "ReadStream"]


def test_physical_reads_say_so(kernel, fake):
    kernel.read(BASE, 8, physical=True)
    kernel.read(BASE, 2 * MIB, physical=True)
    kernel.readv([(BASE, 8)], physical=True)

    _, read, stream, ranges = (request for _, request in fake.seen)
    spaces = [read.space, stream.space, ranges.ranges[0].space]
    assert spaces == [memory_pb2.ADDRESS_SPACE_PHYSICAL] * 3


@pytest.mark.parametrize("length", [300, 2 * MIB])
def test_a_fault_says_where_and_how_much_is_readable(kernel, length):
    end = BASE + len(MEMORY)

    with pytest.raises(libkvm.FaultError) as caught:
        kernel.read(end - 100, length)

    assert caught.value.reason is Reason.NOT_MAPPED
    assert caught.value.address == end
    assert caught.value.metadata["readable"] == "100"


@pytest.mark.parametrize("length", [10, MIB, MIB + 1, 4 * MIB])
def test_readinto_fills_the_buffer(kernel, length):
    buffer = bytearray(length)

    assert kernel.readinto(BASE, buffer) == length
    assert buffer == MEMORY[:length]


@pytest.mark.parametrize("length", [300, 2 * MIB])
def test_readinto_keeps_what_is_before_a_fault(kernel, length):
    buffer = bytearray(length)

    with pytest.raises(libkvm.FaultError) as caught:
        kernel.readinto(BASE + len(MEMORY) - 100, buffer)

    assert buffer == MEMORY[-100:] + bytes(length - 100)
    assert caught.value.metadata["readable"] == "100"


def test_readinto_refuses_a_read_only_buffer(kernel):
    with pytest.raises(TypeError):
        kernel.readinto(BASE, b"1234")


def test_streams_come_in_chunks_and_can_be_left(kernel):
    stream = kernel.stream(BASE, 4 * MIB)

    assert next(stream) == MEMORY[:MIB]
    stream.close()
    assert sum(map(len, kernel.stream(BASE, 4 * MIB))) == 4 * MIB


def test_views_are_good_until_the_next(kernel):
    views = kernel.views(BASE + 3, 3 * MIB)

    first = next(views)
    assert first == MEMORY[3 : 3 + MIB]
    second = next(views)
    assert second[:9] == MEMORY[3 + MIB :][:9]
    with pytest.raises(ValueError, match="released"):
        first[0]
    views.close()
    with pytest.raises(ValueError, match="released"):
        second[0]
    assert b"".join(map(bytes, kernel.views(BASE, 4 * MIB))) == MEMORY[: 4 * MIB]


@pytest.mark.parametrize(("address", "length"), [(-1, 1), (2**64, 1), (0, -1)])
def test_numbers_out_of_range_are_request_errors(kernel, address, length):
    with pytest.raises(libkvm.RequestError):
        kernel.read(address, length)
    with pytest.raises(libkvm.RequestError):
        kernel.readv([(address, length)])


def test_a_short_answer_is_never_taken_for_a_whole_one(kernel, fake, monkeypatch):
    monkeypatch.setattr(fake, "_get", lambda wanted: (b"x", None))

    with pytest.raises(libkvm.InternalError):
        kernel.read(BASE, 4)
    with pytest.raises(libkvm.InternalError):
        kernel.readinto(BASE, bytearray(4))
    with pytest.raises(libkvm.InternalError):
        kernel.read(BASE, 2 * MIB)


def test_more_than_was_asked_for_is_refused(kernel, fake, monkeypatch):
    monkeypatch.setattr(fake, "_get", lambda wanted: (bytes(wanted.length + 1), None))
    buffer = bytearray(4)

    for read in (kernel.read, lambda address, length: kernel.readinto(address, bytearray(length))):
        for length in (4, 2 * MIB):
            with pytest.raises(libkvm.InternalError):
                read(BASE, length)
    assert buffer == bytes(4)


def test_readv_gives_each_range_its_outcome(kernel):
    good, bad, empty = kernel.readv([(BASE + 1, 3), (BASE + len(MEMORY) - 2, 4), (BASE, 0)])

    assert good == libkvm.RangeResult(MEMORY[1:4], None)
    assert bad.data == MEMORY[-2:]
    assert bad.error.reason is Reason.NOT_MAPPED
    assert empty.data == b""


def test_readv_asks_in_batches(kernel, fake):
    results = kernel.readv([(BASE, MIB)] * 20)
    many = kernel.readv((BASE + n % 7, 1) for n in range(20000))

    requests = [len(request.ranges) for name, request in fake.seen if name == "ReadV"]
    assert requests == [16, 4, 16384, 3616]
    assert all(result.data == MEMORY[:MIB] for result in results)
    assert [result.data[0] for result in many[:8]] == [0, 1, 2, 3, 4, 5, 6, 0]


def test_symbols(kernel):
    found = kernel.symbol("jiffies")

    assert found == libkvm.Symbol("jiffies", BASE + 0x1000, 7, 0, "kallsyms", "")
    assert kernel.symbols(["jiffies", "nope", "jiffies"]) == {"jiffies": found, "nope": None}
    assert kernel.symbols([]) == {}


def test_a_missing_symbol_is_a_lookup_error(kernel):
    with pytest.raises(LookupError) as caught:
        kernel.symbol("nope")

    assert isinstance(caught.value, libkvm.KvmError)
    assert str(caught.value) == "nope: no such symbol"


def test_names_no_symbol_can_have_are_not_found(kernel, fake):
    names = ["x" * 513, "\udcff", "", "a\nb"]

    assert kernel.symbols(names) == dict.fromkeys(names)
    assert not [name for name, _ in fake.seen if name == "Nlist"]


def test_symbols_asks_in_batches_and_wants_several(kernel, fake):
    table = kernel.symbols([*(f"s{n}" for n in range(5000)), "jiffies"])

    assert table["jiffies"].value == BASE + 0x1000
    assert [len(request.names) for name, request in fake.seen if name == "Nlist"] == [4096, 905]
    with pytest.raises(TypeError, match="several names"):
        kernel.symbols("jiffies")


def test_processes(kernel):
    init, kthread, hostile = kernel.processes()

    assert (init.pid, init.comm, init.rss_bytes, init.tty, init.args) == (1, "init", 4096, 0, None)
    assert kthread.kernel_thread
    assert (kthread.rss_bytes, kthread.tty) == (None, None)
    assert hostile.comm == "\x1b[2J\udcff"
    assert (hostile.uid, hostile.euid, hostile.gid, hostile.egid, hostile.nice) == (1000, 1001, 5, 6, -5)


def test_processes_with_arguments(kernel):
    init, kthread, hostile = kernel.processes(arguments=True)

    assert init.args == ("/sbin/init", "--quiet")
    assert init.args_error is None
    assert (kthread.args, kthread.args_error.reason) == ((), Reason.NO_USER_MEMORY)
    assert hostile.args_error.address == 0x7000


def test_process_filters(kernel, fake):
    assert [process.pid for process in kernel.processes(uid=1001)] == [30]
    kernel.processes(kernel_threads=True, threads=True)
    kernel.processes(kernel_threads=False)
    kernel.processes(tty=-1)

    sent = [(r.filter, r.argument, r.threads) for name, r in fake.seen if name == "GetProcs"]
    assert sent == [(6, 1001, False), (10, 0, True), (1, 0, False), (5, -1, False)]


def test_wrong_filters_are_refused(kernel):
    with pytest.raises(TypeError, match="one filter"):
        kernel.processes(pid=1, uid=2)
    with pytest.raises(TypeError, match="no filter 'color'"):
        kernel.processes(color=1)
    with pytest.raises(TypeError, match="is an int"):
        kernel.processes(pid="1")
    with pytest.raises(libkvm.RequestError):
        kernel.processes(uid=2**63)


def test_argv_takes_a_process_or_a_pid(kernel, fake):
    assert kernel.argv(kernel.processes()[0]) == ["/sbin/init", "--quiet"]
    assert kernel.argv(1, max_bytes=5) == ["/sbin/init", "--quiet"]
    assert kernel.environ(1) == ["/sbin/init", "--quiet"]

    sent = [(r.kind, r.max_bytes_read) for name, r in fake.seen if name == "GetStrings"]
    assert sent == [(1, 0), (1, 5), (2, 0)]


def test_argv_errors_are_typed_and_carry_what_was_read(kernel):
    with pytest.raises(libkvm.FaultError) as swapped:
        kernel.argv(30)
    with pytest.raises(libkvm.ProcessError) as kthread:
        kernel.argv(2)
    with pytest.raises(libkvm.ProcessError) as gone:
        kernel.argv(99)

    assert swapped.value.reason is Reason.NOT_PRESENT
    assert swapped.value.partial == ["evil\x1b]0;x\x07", "café", "\udcff\n"]
    assert (kthread.value.reason, kthread.value.partial) == (Reason.NO_USER_MEMORY, [])
    assert gone.value.reason is Reason.NO_SUCH_PROCESS
    with pytest.raises(libkvm.RequestError):
        kernel.argv(2**31)


def test_info_is_asked_once_of_a_dump_and_always_of_the_running_kernel(kernel, fake):
    assert kernel.info.load_average == (0.5, 0.25, 0.125)
    assert kernel.info.phys_base == -4096
    assert [name for name, _ in fake.seen].count("GetInfo") == 1
    fake.live = True
    kernel._info = None
    assert kernel.info.live
    assert kernel.info.live
    assert [name for name, _ in fake.seen].count("GetInfo") == 3


def test_log(kernel):
    first, second = kernel.log()

    assert (first.text, first.level) == ("Linux version", 5)
    assert second.timestamp_ns == 1234567890


def test_errors_of_a_stream_are_typed(kernel, fake):
    fake.fail["GetProcs"] = error(Reason.CORRUPT_DATA, "a loop")
    with pytest.raises(libkvm.FormatError, match="a loop"):
        kernel.processes()
    fake.fail["GetLog"] = error(Reason.WORKER_DIED, "gone")
    with pytest.raises(libkvm.UnavailableError, match="gone"):
        kernel.log()
