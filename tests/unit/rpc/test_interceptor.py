"""The guard around every call: identity, deadlines, counts, and errors that say enough and no more."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from kvmd.errors import Reason, error
from kvmd.rpc.interceptor import caller

from .conftest import Serve, info

unary = grpc.unary_unary_rpc_method_handler
stream = grpc.unary_stream_rpc_method_handler
MESSAGE = bytes(1 << 20)


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing sets an event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [unary, stream])
async def test_exception_in_a_handler_leaks_nothing(serve: Serve, caplog: pytest.LogCaptureFixture, kind: Any) -> None:
    """Any exception: the client gets the request's number, the log what happened."""

    async def wrong(request: bytes, context: Any) -> bytes:
        raise OSError(2, "secret", "/secret/path")

    async def wrong_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise OSError(2, "secret", "/secret/path")

    handler = kind(wrong if kind is unary else wrong_stream)
    async with serve(Wrong=handler) as bed, bed.channel() as channel:
        if kind is unary:
            failure = await failure_of(channel.unary_unary("/test.Test/Wrong")(b""))
        else:
            call = channel.unary_stream("/test.Test/Wrong")(b"")
            assert await call.read() == b"first"
            failure = await failure_of(call.read())
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in repr(failure)
    assert all("secret" not in repr(item) for item in failure.trailing_metadata())
    request = info(failure).metadata["request"]
    assert f"(request {request})" in failure.details()
    assert any("Wrong failed" in record.getMessage() for record in caplog.records)
    assert "/secret/path" in caplog.text


async def test_status_details(serve: Serve) -> None:
    async def fault(request: bytes, context: Any) -> bytes:
        raise error(Reason.NOT_MAPPED, "not mapped", address=0xFFF, readable=7)

    async with serve(Fault=unary(fault)) as bed, bed.channel() as channel:
        failure = await failure_of(channel.unary_unary("/test.Test/Fault")(b""))
    assert failure.code() is grpc.StatusCode.OUT_OF_RANGE
    detail = info(failure)
    assert (detail.domain, detail.reason) == ("kvmd", "NOT_MAPPED")
    assert len(detail.metadata.pop("request")) == 8
    assert dict(detail.metadata) == {"address": "0xfff", "readable": "7"}


@pytest.mark.parametrize("text", ["m" * 5000, "\u20ac" * 2000, "\x01" * 5000, "\udcff" * 2000])
async def test_an_error_of_any_size_arrives(serve: Serve, text: str) -> None:
    """Trailers too large for grpc would be lost by chance, and the reason with them."""

    async def large(request: bytes, context: Any) -> bytes:
        raise error(Reason.CORRUPT_DATA, text, **{f"k{number}": text for number in range(20)}, short="x")

    async with serve(Large=unary(large)) as bed, bed.channel() as channel:
        for _ in range(20):
            failure = await failure_of(channel.unary_unary("/test.Test/Large")(b""))
            assert info(failure).reason == "CORRUPT_DATA"
            assert info(failure).metadata["short"] == "x"


async def test_deadline_is_a_status_of_ours(serve: Serve) -> None:
    async def slow(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(60)
        return b""

    async with serve(Slow=unary(slow), call=0.2) as bed, bed.channel() as channel:
        failure = await failure_of(channel.unary_unary("/test.Test/Slow")(b""))
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert info(failure).reason == "DEADLINE"
    assert "Slow" in failure.details()


async def test_request_that_never_comes_ends_at_the_deadline(serve: Serve) -> None:
    """A call holds its place among all calls from its first byte on."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    async with serve(Echo=unary(echo), call=0.2) as bed, bed.channel() as channel, asyncio.timeout(5):
        failure = await failure_of(channel.stream_unary("/test.Test/Echo")(never()))
        assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_call_without_a_request(serve: Serve) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async with serve(Echo=unary(echo)) as bed, bed.channel() as channel, asyncio.timeout(5):
        failure = await failure_of(channel.stream_unary("/test.Test/Echo")(nothing()))
        assert info(failure).reason == "BAD_ARGUMENT"


async def test_stream_that_nobody_reads_ends_at_the_deadline(serve: Serve) -> None:
    """Also while it waits for the client, and its generator at once with it."""
    ended = asyncio.Event()

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield MESSAGE
        finally:
            ended.set()

    async with serve(Endless=stream(endless), stream=0.5) as bed, bed.channel() as channel:
        call = channel.unary_stream("/test.Test/Endless")(b"")
        assert await call.read() == MESSAGE
        await asyncio.wait_for(ended.wait(), 5)
        assert info(await failure_of(_rest(call))).reason == "DEADLINE"


async def test_abandoned_stream_is_closed_and_not_left_to_the_collector(serve: Serve) -> None:
    ended: list[int] = []

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield MESSAGE
        finally:
            ended.append(1)

    gc.disable()
    try:
        async with serve(Endless=stream(endless)) as bed, bed.channel() as channel:
            for reads in range(4):
                call = channel.unary_stream("/test.Test/Endless")(b"")
                for _ in range(reads):
                    await call.read()
                await asyncio.sleep(0.05)
                call.cancel()
                await eventually(lambda: len(ended) == reads + 1)  # noqa: B023 - awaited here
    finally:
        gc.enable()


async def test_failure_keeps_no_message_alive(serve: Serve) -> None:
    """grpc keeps what a call was aborted with until garbage is collected: that must not be mebibytes a call."""

    class Large:
        """A message that can be watched, as bytes can't."""

        data = MESSAGE

    alive: list[weakref.ref[Large]] = []

    async def torn(request: bytes, context: Any) -> AsyncIterator[Large]:
        message = Large()
        alive.append(weakref.ref(message))
        yield message
        raise error(Reason.NOT_MAPPED, "torn")

    gc.collect()
    gc.disable()
    try:
        handler = stream(torn, response_serializer=lambda message: message.data)
        async with serve(Torn=handler) as bed, bed.channel() as channel:
            for _ in range(8):
                await failure_of(_all(channel.unary_stream("/test.Test/Torn")(b"")))
            await eventually(lambda: len(alive) == 8 and not any(each() for each in alive))
    finally:
        gc.enable()


async def _rest(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def _all(call: Any) -> None:
    async for _ in call:
        pass


async def test_calls_are_counted_by_identity(serve: Serve) -> None:
    """Over all its connections; a call that ends, however, makes room again."""

    async def slow(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(60)
        return b""

    server = serve(Slow=unary(slow), Echo=unary(echo), most=3)
    async with server as bed, bed.channel() as one, bed.channel() as two:
        calls = [channel.unary_unary("/test.Test/Slow")(b"") for channel in (one, one, two)]
        await asyncio.sleep(0.2)
        failure = await failure_of(two.unary_unary("/test.Test/Echo")(b""))
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info(failure).reason == "CALL_LIMIT"
        assert "limits.calls_per_uid" in failure.details()
        bed.peers.uid = 1001
        assert await one.unary_unary("/test.Test/Echo")(b"x") == b"x"
        bed.peers.uid = 1000
        calls[0].cancel()
        await asyncio.sleep(0.2)
        for _ in range(5):
            assert await two.unary_unary("/test.Test/Echo")(b"x") == b"x"


async def test_stranger_is_told_nothing(serve: Serve) -> None:
    async with serve(Echo=unary(echo)) as bed, bed.channel() as channel:
        bed.peers.uid = None
        failure = await failure_of(channel.unary_unary("/test.Test/Echo")(b""))
        assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "did not come through" in (failure.details() or "")
        failure = await failure_of(channel.unary_unary("/test.Test/Unknown")(b""))
        assert failure.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_handlers_know_the_caller(serve: Serve) -> None:
    async def who(request: bytes, context: Any) -> bytes:
        return caller.get().peer.identity.encode()

    async with serve(Who=unary(who)) as bed, bed.channel() as channel:
        assert await channel.unary_unary("/test.Test/Who")(b"") == b"uid:1000"


async def test_handlers_of_all_kinds(serve: Serve) -> None:
    """Also those that write by themselves, as the health service's Watch does."""

    async def writes(request: bytes, context: Any) -> None:
        for part in (b"a", request):
            await context.write(part)

    async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request * 2

    async def joined(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def some() -> AsyncIterator[bytes]:
        yield b"x"
        yield b"y"

    handlers = {
        "Writes": stream(writes),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Joined": grpc.stream_unary_rpc_method_handler(joined),
    }
    async with serve(**handlers) as bed, bed.channel() as channel:
        assert [each async for each in channel.unary_stream("/test.Test/Writes")(b"b")] == [b"a", b"b"]
        assert [each async for each in channel.stream_stream("/test.Test/Both")(some())] == [b"xx", b"yy"]
        assert await channel.stream_unary("/test.Test/Joined")(some()) == b"xy"


async def test_streams_are_counted_besides(serve: Serve) -> None:
    async def slow(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(60)

    server = serve(Slow=stream(slow), Echo=unary(echo), limits={"streams_per_uid": 1})
    async with server as bed, bed.channel() as channel:
        first = channel.unary_stream("/test.Test/Slow")(b"")
        assert await first.read() == b"first"
        failure = await failure_of(channel.unary_stream("/test.Test/Slow")(b"").read())
        assert (info(failure).reason, info(failure).metadata["key"]) == ("STREAM_LIMIT", "streams_per_uid")
        assert await channel.unary_unary("/test.Test/Echo")(b"x") == b"x"
        first.cancel()
        await eventually(lambda: bed.metrics.quotas["streams"].used == 0)
        assert await channel.unary_stream("/test.Test/Slow")(b"").read() == b"first"


async def test_bytes_that_nobody_has_taken_are_counted(serve: Serve) -> None:
    async def large(request: bytes, context: Any) -> bytes:
        return bytes(int(request))

    async with serve(Large=unary(large), limits={"inflight_bytes_per_uid": 1000}) as bed, bed.channel() as channel:
        assert len(await channel.unary_unary("/test.Test/Large")(b"1000")) == 1000
        failure = await failure_of(channel.unary_unary("/test.Test/Large")(b"1001"))
        assert (failure.code(), info(failure).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
        assert bed.metrics.quotas["inflight_bytes"].used == 0


async def test_calls_in_a_second(serve: Serve) -> None:
    async with serve(Echo=unary(echo), limits={"calls_per_second_per_uid": 20}) as bed, bed.channel() as channel:
        method = channel.unary_unary("/test.Test/Echo")
        outcomes = await asyncio.gather(*(method(b"x") for _ in range(60)), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert 20 <= len(refused) <= 40
        assert {info(each).reason for each in refused} == {"RATE_LIMIT"}
        bed.peers.uid = 1001
        assert await method(b"y") == b"y"
        bed.peers.uid = 1000
        await asyncio.sleep(0.2)
        assert await method(b"z") == b"z"


async def test_a_connection_too_many_is_told_so(serve: Serve) -> None:
    async with serve(Echo=unary(echo)) as bed, bed.channel() as channel:
        bed.peers.refusal = error(Reason.CONNECTION_LIMIT, "too many", key="connections")
        failure = await failure_of(channel.unary_unary("/test.Test/Echo")(b""))
        assert (failure.code(), info(failure).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONNECTION_LIMIT")
        assert info(failure).metadata["key"] == "connections"


async def test_calls_are_observed(serve: Serve) -> None:
    async with serve(Echo=unary(echo)) as bed, bed.channel() as channel:
        await channel.unary_unary("/test.Test/Echo")(b"x")
        await failure_of(channel.unary_unary("/test.Test/Nothing")(b"x"))
        bed.peers.uid = None
        await failure_of(channel.unary_unary("/test.Test/Echo")(b"x"))
    counted = {key: calls.count for key, calls in bed.metrics.calls.items()}
    assert counted == {("/test.Test/Echo", "OK"): 1, ("/test.Test/Echo", "NO_PEER_IDENTITY"): 1}
