"""What opens an image: awaited, it answers the image; as an asynchronous context manager, it closes it too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from libkvm.aio.handle import Handle

P = ParamSpec("P")
H = TypeVar("H", bound=Handle)


class Opening(Generic[H]):
    """An image that is being opened: ``await`` it, or use it in ``async with``."""

    def __init__(self, work: Coroutine[Any, Any, H]) -> None:
        self._work = work
        self._opened: H | None = None

    def __await__(self) -> Generator[Any, Any, H]:
        return self._work.__await__()

    async def __aenter__(self) -> H:
        self._opened = await self._work
        return self._opened

    async def __aexit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self._opened is not None:
            await self._opened.close()


def opening(function: Callable[P, Coroutine[Any, Any, H]]) -> Callable[P, Opening[H]]:
    """Make a coroutine function answer an :class:`Opening`."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Opening[H]:
        return Opening(function(*args, **kwargs))

    return wrapper
