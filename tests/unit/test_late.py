"""Modules that run when they are first used: what importing them does, and what becomes of one that fails."""

from __future__ import annotations

import importlib
import os
import py_compile
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from types import ModuleType

import pytest

from kvmd import late
from kvmd.given import GIVEN

RAN: list[str] = []
"""The modules that have run, in order."""
NOTE = f"import sys; sys.modules[{__name__!r}].RAN.append(__name__)\n"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Write modules of the package ``lately``, which runs late; their directory."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(late, "_finder", late._Finder())
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    RAN.clear()

    def write(**sources: str) -> Path:
        for name, source in {"__init__": "", **sources}.items():
            path = tmp_path.joinpath("lately", *name.split("__in__")[::-1]).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(NOTE + source)
        importlib.invalidate_caches()
        late.start("lately")
        return tmp_path / "lately"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "lately"]:
        del sys.modules[name]


def has_run(module: ModuleType) -> bool:
    return type(module) is ModuleType


def test_a_module_runs_when_something_of_it_is_used(make: Make) -> None:
    path = make(one="answer = 42")
    from lately import one

    assert RAN == ["lately"]  # which was asked for the name, and has it only as a module
    assert (one.__name__, one.__file__, one.__package__) == ("lately.one", str(path / "one.py"), "lately")
    assert not has_run(one)
    assert one.answer == 42
    assert has_run(one)
    assert one.answer == 42
    assert RAN == ["lately", "lately.one"]


def test_a_package_need_not_run_for_a_module_in_it(make: Make) -> None:
    make(__init__="raise AssertionError", one="answer = 42")
    import lately.one as one  # noqa: PLR0402 - which does not ask the package for the name

    assert one.answer == 42
    assert RAN == ["lately.one"]


def test_a_name_that_is_imported_runs_its_module(make: Make) -> None:
    make(one="from lately.two import answer", two="answer = 42")
    from lately.one import answer

    assert answer == 42
    assert RAN == ["lately.one", "lately.two"]


def test_all_names_of_a_module_are_imported(make: Make) -> None:
    make(one="from lately.two import *", two="__all__ = ['answer']\nanswer = 42")
    from lately import one

    assert one.answer == 42


def test_what_a_module_does_not_have_is_missing(make: Make) -> None:
    make(one="answer = 42")
    from lately import one

    assert not hasattr(one, "question")
    assert has_run(one)
    with pytest.raises(ImportError, match="question"):
        exec("from lately.one import question")


def test_modules_may_import_each_other(make: Make) -> None:
    make(one="from lately import two\ndef f(): return two.g()", two="from lately import one\ndef g(): return 42")
    from lately import one

    assert one.f() == 42


def test_modules_that_need_each_other_fail_as_ever(make: Make) -> None:
    make(one="from lately.two import b\na = 1", two="from lately.one import a\nb = 1")
    with pytest.raises(ImportError, match="'a'"):
        exec("from lately.one import a")


def test_what_a_module_is_known_to_have_does_not_run_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GIVEN, "lately.one", {"answer": 42})
    make(one="answer = 6 * 7\nquestion = 'six by nine'")
    from lately.one import answer

    assert answer == 42
    assert RAN == []
    from lately.one import question

    assert question
    assert RAN == ["lately.one"]


def test_one_that_fails_is_late_again(make: Make) -> None:
    make(one="import os\nanswer = 42\nif 'LATELY' not in os.environ: raise OSError('not yet')")
    from lately import one

    for _ in range(2):
        with pytest.raises(OSError, match="not yet"):
            _ = one.answer
        assert "answer" not in vars(one)
        assert not has_run(one)
    os.environ["LATELY"] = "now"
    try:
        assert one.answer == 42
    finally:
        del os.environ["LATELY"]


def test_threads_find_it_whole(make: Make) -> None:
    make(one="first = 1\nimport time; time.sleep(0.1)\nlast = 1")
    from lately import one

    found: list[int] = []
    ready = Barrier(4)

    def look() -> None:
        ready.wait(10)
        found.append(one.last)

    threads = [Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [1] * 4
    assert RAN.count("lately.one") == 1


def test_others_run_at_once(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "latelyness.py").write_text(NOTE)
    importlib.import_module("latelyness")
    assert RAN == ["latelyness"]
    del sys.modules["latelyness"]


def test_what_is_no_source_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "_finder", late._Finder())
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, "_json")
    late.start("_json", "errno", "no_such_module")
    assert has_run(importlib.import_module("_json"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module")


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_held_needs_no_file(make: Make, compiled: bool) -> None:
    one = "from lately import two\nfrom lately.sub.three import answer"
    path = make(one=one, two="more = 1", three__in__sub="answer = 42", __init____in__sub="")
    for source in path.rglob("*.py") if compiled else ():
        py_compile.compile(str(source))
    lately = importlib.import_module("lately.one")
    late.hold()
    shutil.rmtree(path)
    assert (lately.answer, lately.two.more) == (42, 1)
    assert set(RAN) == {"lately", "lately.one", "lately.sub.three", "lately.two"}
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lately.four")


def test_code_of_another_source_is_not_held(make: Make) -> None:
    path = make(one="answer = 41")
    py_compile.compile(str(path / "one.py"))
    (path / "one.py").write_text(NOTE + "answer = 40 + 2")
    late.hold()
    shutil.rmtree(path)
    assert importlib.import_module("lately.one").answer == 42


def test_the_rest_runs_one_a_step(make: Make) -> None:
    make(one="", two="", three="")
    from lately import one

    late.hold()
    steps = late.rest("lately")
    for count in (1, 2, 3):
        next(steps)
        assert len(set(RAN) - {"lately"}) == count
    assert list(steps) == []
    assert has_run(one)
    assert list(late.rest("lately")) == []


def test_it_is_started_once(make: Make) -> None:
    make()
    late.start("other")
    assert sum(each is late._finder for each in sys.meta_path) == 1
