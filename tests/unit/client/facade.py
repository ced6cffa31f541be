"""The asyncio twin behind a synchronous face, so that the same tests hold for both, and for the C face over it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Self

import libkvm.aio
from libkvm.aio.transports import transport as aio_transport

TIMEOUT = 120


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """One event loop in a thread of its own, for as long as the tests run."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop()).result(TIMEOUT)


async def awaited(thing: Any) -> Any:
    return await thing


def drain(items: Any) -> Generator[Any]:
    try:
        while True:
            try:
                item = run(awaited(anext(items)))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(items.aclose())


class Facade:
    """An object of libkvm.aio whose coroutines are run, and whose iterators are iterated, at once."""

    def __init__(self, thing: Any) -> None:
        self.__dict__["thing"] = thing

    def __getattr__(self, name: str) -> Any:
        return made_sync(getattr(self.thing, name))

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.thing, name, value)

    def __enter__(self) -> Self:
        run(awaited(self.thing.__aenter__()))
        return self

    def __exit__(self, *why: object) -> None:
        run(awaited(self.thing.__aexit__(*why)))

    def __repr__(self) -> str:
        return repr(self.thing)

    def __reduce__(self) -> Any:
        return self.thing.__reduce__()


def made_sync(thing: Any) -> Any:
    if isinstance(thing, libkvm.aio.Kernel):
        return Facade(thing)
    if inspect.isawaitable(thing):
        return made_sync(run(awaited(thing)))
    if inspect.isasyncgen(thing):
        return drain(thing)
    if inspect.ismethod(thing):
        return synchronous(thing)
    return thing


def synchronous(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return made_sync(method(*args, **kwargs))

    return call


def connect(target: str | None = None, **options: float) -> Facade:
    return Facade(libkvm.aio.connect(target, **options))


class LoopTransport:
    """The asyncio transport as a synchronous one."""

    def __init__(self, target: str) -> None:
        self.inner = aio_transport(target)

    @property
    def target(self) -> str:
        return self.inner.target

    @property
    def closed(self) -> bool:
        return self.inner.closed

    def unary(self, call: Any, request: Any, timeout: float) -> Any:
        return run(self.inner.unary(call, request, timeout))

    def stream(self, call: Any, request: Any, timeout: float) -> Generator[Any]:
        return drain(self.inner.stream(call, request, timeout))

    def close(self) -> None:
        run(self.inner.close())
