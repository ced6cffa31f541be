"""What late modules have before they run, beside what they have after."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Generator, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvmd.given import GIVEN

QUESTIONS = ["isawaitable", "iscoroutinefunction", "isasyncgenfunction"]


def plain() -> None:
    pass


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> None:
    pass


async def asynchronous() -> AsyncIterator[int]:
    yield 1


@types.coroutine
def iterable() -> Generator[int, None, None]:
    yield 1


class Some:
    def plain(self) -> None:
        pass

    async def coroutine(self) -> None:
        pass

    async def asynchronous(self) -> AsyncIterator[int]:
        yield 1

    @classmethod
    async def of_the_class(cls) -> None:
        pass

    async def __call__(self) -> None:
        pass


class Awaited(Awaitable[int]):
    def __await__(self) -> Generator[None, None, int]:
        yield
        return 1


FUNCTIONS = [
    plain, generator, coroutine, asynchronous, iterable, lambda: None, Some, Some(), Some().plain, Some().coroutine,
    Some.coroutine, Some().asynchronous, Some().of_the_class, partial(coroutine), partial(partial(asynchronous)),
    types.MethodType(partial(coroutine), 1), partial(Some().coroutine), len, str.join, print, 1, None, "text", type,
    object(),
]  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("thing", FUNCTIONS, ids=map(str, range(len(FUNCTIONS))))
def test_functions_are_judged_as_inspect_does(name: str, thing: object) -> None:
    assert GIVEN["inspect"][name](thing) is bool(getattr(inspect, name)(thing))  # type: ignore[operator]


@pytest.mark.parametrize("made", [generator, iterable, asynchronous, Awaited])
def test_what_is_awaited_is_judged_as_inspect_does(made: object) -> None:
    thing = made()  # type: ignore[operator]
    assert GIVEN["inspect"]["isawaitable"](thing) is inspect.isawaitable(thing)  # type: ignore[operator]


def test_a_coroutine_can_be_awaited() -> None:
    thing = coroutine()
    assert GIVEN["inspect"]["isawaitable"](thing) is inspect.isawaitable(thing) is True  # type: ignore[operator]
    thing.close()


def test_all_that_is_given_is_there_when_the_module_has_run() -> None:
    import typing_extensions

    assert typing_extensions.Self is GIVEN["typing_extensions"]["Self"]
    assert sorted(GIVEN["inspect"]) == sorted(QUESTIONS)


def test_an_unusual_question_runs_the_module() -> None:
    code = "from kvmd import late; late.start('inspect'); import inspect; from kvmd.late import _Late;"
    code += "assert not inspect.iscoroutinefunction(lambda: None) and type(inspect) is _Late;"
    code += "assert not inspect.iscoroutinefunction(len) and type(inspect) is not _Late"
    subprocess.run([sys.executable, "-c", code], check=True)


RUN = """
import atexit, sys
from types import ModuleType
from kvmd.__main__ import main
atexit.register(lambda: print(*(name for name, module in sys.modules.items() if type(module) is ModuleType)))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_daemon_serves_and_ends_without_what_is_for_later(tmp_path: Path, number: int) -> None:
    config = tmp_path / "kvmd.toml"
    config.write_text("")
    words = [sys.executable, "-c", RUN, "--listen", f"unix:{tmp_path}/kvmd.sock", "--config", str(config)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stderr is not None
        assert any("ready on" in line for line in daemon.stderr)
        os.kill(daemon.pid, number)
        names = set(daemon.stdout.read().split())
    assert daemon.returncode == 0
    assert {"kvmd.daemon", "grpc.aio", "asyncio"} <= names
    assert not {"inspect", "ast", "dis", "ssl", "hashlib", "google.rpc.status_pb2", "typing_extensions"} & names
