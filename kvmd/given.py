"""What late modules have before they run (:mod:`kvmd.late`): the few names that every start asks for.

Of ``inspect`` those are three questions that grpc and asyncio ask about functions; to run all of it for them, and what
it is made of, is a twentieth of a daemon's start. What is out of the ordinary is left to its own.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Awaitable
from functools import partial
from types import FunctionType, GeneratorType, MethodType

# Of a code object's co_flags: see the module inspect in Python's documentation.
_COROUTINE, _ITERABLE_COROUTINE, _ASYNC_GENERATOR = 0x80, 0x100, 0x200


def isawaitable(thing: object) -> bool:
    """Whether it can be awaited."""
    generator = isinstance(thing, GeneratorType) and thing.gi_code.co_flags & _ITERABLE_COROUTINE
    return isinstance(thing, Awaitable) or bool(generator)


def iscoroutinefunction(thing: object) -> bool:
    """Whether it is made by ``async def``, and no generator."""
    return _flagged("iscoroutinefunction", thing, _COROUTINE)


def isasyncgenfunction(thing: object) -> bool:
    """Whether it is made by ``async def``, and a generator."""
    return _flagged("isasyncgenfunction", thing, _ASYNC_GENERATOR)


def _flagged(name: str, thing: object, flag: int) -> bool:
    function = thing
    while isinstance(function, MethodType | partial):
        function = function.__func__ if isinstance(function, MethodType) else function.func
    if isinstance(function, FunctionType):
        return bool(function.__code__.co_flags & flag)
    return _left(name, thing)


def _left(name: str, thing: object) -> bool:
    inspect = importlib.import_module("inspect")
    getattr(inspect, "Signature")  # noqa: B009 - which it hasn't before it runs
    answer: bool = getattr(inspect, name)(thing)
    return answer


GIVEN: dict[str, dict[str, object]] = {
    "typing_extensions": {"Self": typing.Self},  # which is all that grpc.aio wants, and the same there
    "inspect": {each.__name__: each for each in (isawaitable, iscoroutinefunction, isasyncgenfunction)},
}
"""By module and name."""
