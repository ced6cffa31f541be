"""The worker's request loop, over a real socket, with an image made for the purpose."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from kvmd.errors import Reason
from kvmd.fast import ANSWER, HALF, INLINE, ONE, PAGE, WINDOW, cache_size
from kvmd.images.base import Kind as ImageKind
from kvmd.v1 import batch_pb2, image_pb2, memory_pb2, process_pb2, symbol_pb2
from kvmd.worker import pace
from kvmd.worker.loop import MAX_CLIENTS, MAX_CURSORS
from kvmd.worker.methods import METHODS
from kvmd.worker.protocol import CURSOR, SIZE, Kind, decode_error
from procs import eventually

from .serving import LENGTH, Daemon, Memory, reason


def test_open_hands_over_the_files_in_order(daemon: Daemon) -> None:
    (image,) = daemon.images
    assert (image.files.core.name, image.files.exec.name, image.files.writable) == ("/c", "/e", True)
    assert {role: file.name for role, file in image.files.extra.items()} == {"kallsyms": "/k"}
    assert image.files.kind is ImageKind.LIVE
    assert os.readlink(f"/proc/self/fd/{image.files.core.fd}") == "/dev/null"
    assert os.readlink(f"/proc/self/fd/{image.files.exec.fd}") == "/dev/zero"
    assert not os.get_inheritable(image.files.core.fd)


def test_unary_call(daemon: Daemon) -> None:
    kind, answer = daemon.call("Nlist", symbol_pb2.NlistRequest(names=["here", "not"]))
    found = [symbol.found for symbol in symbol_pb2.NlistResponse.FromString(answer).symbols]
    assert (kind, found) == (Kind.RESULT, [True, False])


def test_stream_is_pulled_message_by_message(daemon: Daemon) -> None:
    """Each chunk waits to be asked for; two streams and a unary call take turns; the end is an END."""
    request = memory_pb2.ReadStreamRequest(length=LENGTH)
    streams = [daemon.call("ReadStream", request)[1] for _ in range(2)]
    data = [b"", b""]
    for _ in range(2):
        for which, item in enumerate(streams):
            data[which] += memory_pb2.ReadStreamResponse.FromString(item[CURSOR.size :]).data
            kind, streams[which] = daemon.ask(Kind.NEXT, item[: CURSOR.size])
            assert kind is Kind.ITEM
        assert daemon.call("Nlist", symbol_pb2.NlistRequest())[0] is Kind.RESULT
    for which, item in enumerate(streams):
        data[which] += memory_pb2.ReadStreamResponse.FromString(item[CURSOR.size :]).data
        assert daemon.ask(Kind.NEXT, item[: CURSOR.size]) == (Kind.END, b"")
    assert data[0] == data[1] == bytes(n % 251 for n in range(LENGTH))


@pytest.mark.parametrize("length", [1, 4097, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 1 << 17, (1 << 20) - 1, 1 << 20])
def test_a_message_of_a_stream_is_what_protobuf_makes_of_it(daemon: Daemon, length: int) -> None:
    """However it is made: where it is read (at an even address), or copied."""
    for address in (6, 7):
        kind, item = daemon.call("ReadStream", memory_pb2.ReadStreamRequest(address=address, length=length))
        data = bytes(n % 251 for n in range(address, address + length))
        assert kind is Kind.ITEM
        assert item[CURSOR.size :] == memory_pb2.ReadStreamResponse(data=data).SerializeToString()


def test_stream_sends_what_is_readable_before_its_error(daemon: Daemon) -> None:
    kind, item = daemon.call("ReadStream", memory_pb2.ReadStreamRequest(address=LENGTH - 100, length=1 << 30))
    assert kind is Kind.ITEM
    assert len(memory_pb2.ReadStreamResponse.FromString(item[CURSOR.size :]).data) == 100
    failure = daemon.ask(Kind.NEXT, item[: CURSOR.size])
    assert reason(failure) is Reason.NOT_MAPPED
    assert decode_error(failure[1]).metadata["readable"] == "100"


def test_dropped_stream_is_forgotten(daemon: Daemon) -> None:
    for _ in range(MAX_CURSORS + 10):
        _, item = daemon.call("ReadStream", memory_pb2.ReadStreamRequest(length=8))
        assert daemon.ask(Kind.DROP, item[: CURSOR.size]) == (Kind.END, b"")


def test_streams_are_limited(daemon: Daemon) -> None:
    answers = [daemon.call("ReadStream", memory_pb2.ReadStreamRequest(length=8)) for _ in range(MAX_CURSORS + 1)]
    assert {kind for kind, _ in answers[:-1]} == {Kind.ITEM}
    assert reason(answers[-1]) is Reason.WORKER_LIMIT


def test_range_results_are_each_their_own(daemon: Daemon) -> None:
    ranges = [memory_pb2.Range(address=at, length=16) for at in (0, LENGTH - 6, LENGTH + 5, 32)]
    kind, answer = daemon.call("ReadV", memory_pb2.ReadVRequest(ranges=ranges))
    results = memory_pb2.ReadVResponse.FromString(answer).results
    assert kind is Kind.RESULT
    assert [(len(each.data), each.error.reason) for each in results] == [
        (16, ""),
        (6, "NOT_MAPPED"),
        (0, "NOT_MAPPED"),
        (16, ""),
    ]


def test_batches_are_bounded(daemon: Daemon) -> None:
    """3,000 processes of a kilobyte each come in messages of about half a mebibyte, all of them, in order."""
    kind, item = daemon.call("GetProcs", process_pb2.GetProcsRequest(argument=3000))
    pids: list[int] = []
    while kind is Kind.ITEM:
        assert len(item) < 600 << 10
        pids += [each.pid for each in process_pb2.GetProcsResponse.FromString(item[CURSOR.size :]).processes]
        kind, item = daemon.ask(Kind.NEXT, item[: CURSOR.size])
    assert (kind, pids) == (Kind.END, list(range(1, 3001)))


class Slow(Memory):
    """Each read takes a hundredth of a second."""

    def read(self, address: int, length: int, space: int, pid: int = 0) -> bytes:
        time.sleep(0.01)
        return super().read(address, length, space, pid)


@pytest.mark.parametrize(
    ("method", "request_", "response"),
    [
        (
            "ReadV",
            memory_pb2.ReadVRequest(ranges=[memory_pb2.Range(address=at, length=3) for at in range(20)]),
            memory_pb2.ReadVResponse,
        ),
        (
            "ReadCStrings",
            batch_pb2.ReadCStringsRequest(addresses=range(LENGTH, LENGTH + 20)),
            batch_pb2.ReadCStringsResponse,
        ),
    ],
)
def test_a_long_answer_comes_in_pieces(method: str, request_: Message, response: type[Message]) -> None:
    """So that others get their turn; put together they are what a short one is."""
    slow, quick = Daemon(Slow), Daemon()
    for running in (slow, quick):
        running.open()
    (kind, whole), pieces = quick.call(method, request_), []
    assert kind is Kind.RESULT
    kind, item = slow.call(method, request_)
    while kind is Kind.ITEM:
        pieces.append(item[CURSOR.size :])
        kind, item = slow.ask(Kind.NEXT, item[: CURSOR.size])
    assert kind is Kind.END
    assert len(pieces) > 2
    assert response.FromString(b"".join(pieces)) == response.FromString(whole)
    slow.close()
    quick.close()


def test_what_came_before_an_error_is_sent(daemon: Daemon) -> None:
    """A generator that fails after a first record: the error comes, and the stream is gone."""
    answer = daemon.call("GetLog", image_pb2.GetLogRequest())
    if answer[0] is Kind.ITEM:
        answer = daemon.ask(Kind.NEXT, answer[1][: CURSOR.size])
    assert reason(answer) is Reason.CORRUPT_DATA


def test_fault_of_ours_is_told_to_the_log_alone(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    answer = daemon.call("GetInfo", image_pb2.GetInfoRequest())
    assert reason(answer) is Reason.INTERNAL
    assert b"secret" not in answer[1]
    assert "secret detail" in capfd.readouterr().err
    assert daemon.call("Nlist", symbol_pb2.NlistRequest())[0] is Kind.RESULT


def test_out_of_memory_is_told_and_then_it_ends(daemon: Daemon) -> None:
    request = memory_pb2.ReadRequest(length=8, space=memory_pb2.ADDRESS_SPACE_PHYSICAL)
    assert reason(daemon.call("Read", request)) is Reason.WORKER_MEMORY
    daemon.thread.join(10)
    assert not daemon.thread.is_alive()


def test_call_before_open() -> None:
    daemon = Daemon()
    assert reason(daemon.call("Nlist", symbol_pb2.NlistRequest())) is Reason.INTERNAL
    daemon.close()


def test_oversized_frame_ends_the_worker() -> None:
    daemon = Daemon()
    daemon.sock.sendall(struct.pack("<II", Kind.CALL, 1 << 31))
    daemon.thread.join(10)
    assert not daemon.thread.is_alive()
    daemon.sock.close()


def test_methods_are_those_of_the_wire() -> None:
    from kvmd.rpc.calls import CALLS

    assert set(METHODS) == {"Write", "Digest", "IndexInputs", *CALLS}


def read_request(address: int, length: int, half: int = 0, number: int = 7) -> bytes:
    return ONE.pack(number, memory_pb2.ADDRESS_SPACE_KERNEL, half, 0, 0, address, length)


def pattern(address: int, length: int) -> bytes:
    return bytes(n % 251 for n in range(address, address + length))


def grant(daemon: Daemon) -> tuple[socket.socket, int]:
    """A client of the loop's: its socket and its window."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    window = os.memfd_create("window")
    os.ftruncate(window, WINDOW)
    with theirs:
        assert daemon.ask(Kind.GRANT, fds=[theirs.fileno(), window]) == (Kind.RESULT, b"")
    ours.settimeout(10)
    return ours, window


@pytest.fixture
def client(daemon: Daemon) -> Iterator[tuple[socket.socket, int]]:
    sock, window = grant(daemon)
    yield sock, window
    sock.close()
    os.close(window)


def test_a_client_is_answered_beside_the_daemon(daemon: Daemon, client: tuple[socket.socket, int]) -> None:
    sock, window = client
    for at in range(5):
        sock.send(read_request(at, 8))
        assert sock.recv(1 << 16)[ANSWER.size :] == pattern(at, 8)
        assert daemon.call("Nlist", symbol_pb2.NlistRequest())[0] is Kind.RESULT
    sock.send(read_request(3, 300_000, half=1))
    assert ANSWER.unpack(sock.recv(1 << 16)) == (7, 0, 300_000, 0)
    assert os.pread(window, 300_000, HALF) == pattern(3, 300_000)


def test_small_reads_do_not_wait_for_large_ones(daemon: Daemon, client: tuple[socket.socket, int]) -> None:
    """Many clients read all they can at once; one of small reads is answered long before they are."""
    others = [grant(daemon) for _ in range(8)]
    for other, _ in others:
        other.send(read_request(0, HALF))
    client[0].send(read_request(5, 8))
    assert client[0].recv(100)[ANSWER.size :] == pattern(5, 8)
    waiting = sum(not _answered(other) for other, _ in others)
    assert waiting >= 6
    for other, window in others:
        assert ANSWER.unpack(other.recv(100)) == (7, 0, HALF, 0)
        other.close()
        os.close(window)


def test_a_small_read_does_not_wait_for_a_large_one_of_its_own_client(
    daemon: Daemon, client: tuple[socket.socket, int]
) -> None:
    """Two requests of a client are worked at, and no more: what is asked for beside two waits for one of them."""
    sock, window = client
    for number, half, length in ((1, 0, HALF), (2, 0, 8)):
        sock.send(read_request(0, length, half, number))
    assert [ANSWER.unpack_from(sock.recv(100))[0] for _ in range(2)] == [2, 1]
    for number, half, length in ((3, 0, HALF), (4, 1, INLINE + 1), (5, 0, 8), (6, 0, 8)):
        sock.send(read_request(0, length, half, number))
    assert [ANSWER.unpack_from(sock.recv(100))[0] for _ in range(4)] == [4, 5, 6, 3]
    assert os.pread(window, HALF, 0) == pattern(0, HALF)


def test_beside_small_reads_large_answers_wait_for_one_another(
    daemon: Daemon, client: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks again, so each answer is waited for until it must have been copied; then the next is given."""
    monkeypatch.setattr(pace, "_RECENT", 20)
    monkeypatch.setattr(pace, "_COPIED", 0.05)
    others = [grant(daemon) for _ in range(4 + len(os.sched_getaffinity(0)))]

    def took() -> float:
        began = time.monotonic()
        for other, _ in others:
            other.send(read_request(0, INLINE + 1))
        for other, _ in others:
            assert ANSWER.unpack(other.recv(100)) == (7, 0, INLINE + 1, 0)
        return time.monotonic() - began

    assert took() < 0.2
    client[0].send(read_request(5, 8))
    assert client[0].recv(100)[ANSWER.size :] == pattern(5, 8)
    assert took() > 0.2
    for other, window in others:
        other.close()
        os.close(window)


def _answered(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_garbage_ends_its_client_alone(daemon: Daemon, client: tuple[socket.socket, int]) -> None:
    bad, window = grant(daemon)
    bad.send(b"garbage")
    assert bad.recv(1) == b""
    bad.close()
    os.close(window)
    client[0].send(read_request(1, 8))
    assert client[0].recv(100)[ANSWER.size :] == pattern(1, 8)


def test_a_client_that_goes_in_the_middle(daemon: Daemon, client: tuple[socket.socket, int]) -> None:
    other, window = grant(daemon)
    other.send(read_request(0, HALF))
    other.close()
    os.close(window)
    client[0].send(read_request(1, 8))
    assert client[0].recv(100)[ANSWER.size :] == pattern(1, 8)
    assert daemon.call("Nlist", symbol_pb2.NlistRequest())[0] is Kind.RESULT


def test_clients_are_limited_and_leave_nothing(daemon: Daemon) -> None:
    before = len(os.listdir("/proc/self/fd"))
    clients = [grant(daemon) for _ in range(MAX_CLIENTS)]
    with socket.socket() as sock, open("/dev/null", "rb") as null:
        assert reason(daemon.ask(Kind.GRANT, fds=[sock.fileno(), null.fileno()])) is Reason.WORKER_LIMIT
        assert reason(daemon.ask(Kind.GRANT, fds=[sock.fileno()])) is Reason.WORKER_LIMIT
    for sock, window in clients:
        sock.close()
        os.close(window)
    for _ in range(3):  # rounds in which it meets the ends of all of them
        assert daemon.call("Nlist", symbol_pb2.NlistRequest())[0] is Kind.RESULT
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, 5)


def test_pages_are_kept_where_the_daemon_says(daemon: Daemon, client: tuple[socket.socket, int]) -> None:
    sock, _ = client
    size = cache_size(512)

    def slot() -> int:
        sock.send(read_request(PAGE + 8, 8))
        answer = sock.recv(100)
        assert answer[ANSWER.size :] == pattern(PAGE + 8, 8)
        return ANSWER.unpack_from(answer)[3]

    assert slot() == 0
    for _ in range(2):
        memory = os.memfd_create("cache")
        os.ftruncate(memory, size)
        assert daemon.ask(Kind.CACHE, SIZE.pack(size), [memory]) == (Kind.RESULT, b"")
        place = 512 * 8 + (slot() - 1) * PAGE
        assert os.pread(memory, PAGE, place) == pattern(PAGE, PAGE)
        os.close(memory)
    assert daemon.ask(Kind.CACHE, SIZE.pack(0)) == (Kind.RESULT, b"")
    assert slot() == 0


def test_out_of_memory_for_a_client_ends_the_worker(daemon: Daemon, client: tuple[socket.socket, int]) -> None:
    client[0].send(ONE.pack(1, memory_pb2.ADDRESS_SPACE_PHYSICAL, 0, 0, 0, 0, 8))
    daemon.thread.join(10)
    assert not daemon.thread.is_alive()
    assert client[0].recv(1) == b""
