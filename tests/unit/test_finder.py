"""What finds modules at a daemon's start, beside what Python has for it."""

from __future__ import annotations

import importlib
import json
import os
import py_compile
import subprocess
import sys
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from kvmd import finder
from kvmd.finder import Finder, Loader, code

# Names and paths of all that a daemon, a worker and a client import, and the loaders' classes.
IMPORTS = """
import json, sys
from importlib.machinery import ModuleSpec
{before}
import kvmd.daemon, kvmd.worker.start, libkvm.aio, zoneinfo, xml.dom, email, ctypes.util
found = {{name: getattr(module, "__spec__", None) for name, module in sys.modules.items() if name != "__main__"}}
print(json.dumps({{
    name: [type(spec.loader).__name__, spec.origin, spec.cached, spec.parent,
           getattr(sys.modules[name], "__file__", None), list(getattr(sys.modules[name], "__path__", []))]
    for name, spec in found.items() if isinstance(spec, ModuleSpec)
}}))
"""


def imported(before: str) -> dict[str, list[object]]:
    command = [sys.executable, "-c", IMPORTS.format(before=before)]
    found: dict[str, list[object]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def test_all_modules_are_what_python_finds() -> None:
    plain, ours = imported("import kvmd"), imported("from kvmd import finder; finder.start()")
    used = [name for name, (loader, *_) in ours.items() if loader == "Loader"]
    assert len(used) > 250
    assert {name: told[1:] for name, told in ours.items()} == {name: told[1:] for name, told in plain.items()}


def write(path: Path, text: str = "answer = 42\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def same(name: str, path: list[str]) -> bool:
    """Whether a module is found, and where Python finds it; what isn't found here is left to that."""
    found, wanted = Finder().find_spec(name, path), PathFinder.find_spec(name, path)
    if found is None or wanted is None:
        return found is wanted
    assert found.origin == wanted.origin
    assert found.submodule_search_locations == wanted.submodule_search_locations
    assert found.cached == wanted.cached
    return found.has_location == wanted.has_location


def test_what_is_found_is_what_python_finds(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one / "module.py")
    write(one / "package" / "__init__.py")
    write(one / "both.py")
    write(one / "both" / "__init__.py")
    write(two / "module.py")
    write(two / "second.py")
    path = [str(tmp_path / "none"), str(one), str(two)]
    for name in ("module", "package", "both", "second", "missing", "top.module"):
        assert same(name, path)


def test_what_is_out_of_the_ordinary_is_left_to_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "spaces" / "inside.py")  # no __init__: may be a part of a package that is in many places
    write(tmp_path / "later" / "spaces.py")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "")
    source = write(tmp_path / "compiled.py")
    py_compile.compile(str(source), cfile=str(tmp_path / "bare.pyc"))
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    for name, path in (
        ("spaces", [here, str(tmp_path / "later")]),
        ("zipped", [str(tmp_path / "archive.zip"), here]),
        ("compiled", ["", here]),
        ("compiled", [".", here]),
        ("bare", [here]),
    ):
        assert Finder().find_spec(name, path) is None
    one = Finder()
    assert one.find_spec("written", [here]) is None
    write(tmp_path / "written.py")
    assert one.find_spec("written", [here]) is None


def test_code_that_is_kept_counts_only_for_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    source = write(tmp_path / "changing.py", "answer = 41\n")

    def answer() -> object:
        found: dict[str, object] = {}
        made = Loader("changing", str(source)).get_code("changing")
        assert made is not None
        exec(made, found)
        return found["answer"]

    assert answer() == 41
    kept = Path(importlib.util.cache_from_source(str(source)))
    assert kept.exists()
    written = kept.read_bytes()
    source.write_text("answer = 6 * 7\n")
    assert answer() == 42  # of another size
    source.write_text("answer = 6 * 8\n")
    os.utime(source, ns=(10**18, 10**18))
    assert answer() == 48  # of another time
    for damage in (b"", written[:10], b"\0" * 16 + written[16:]):
        kept.write_bytes(damage)
        assert answer() == 48
    kept.unlink()
    source.chmod(0o644)
    assert code("changing", str(source))


@pytest.mark.parametrize("name", ["plain.py", "two.dots.py", "none", "other.pyw"])
@pytest.mark.parametrize("prefix", [None, "/var/cache/code"])
def test_code_is_kept_where_python_keeps_it(monkeypatch: pytest.MonkeyPatch, name: str, prefix: str | None) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", prefix)
    for directory in ("", "/", "/a.directory/"):
        assert finder._place(directory + name) == importlib.util.cache_from_source(directory + name)


def test_code_that_is_checked_by_a_hash_is_left_to_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    source = write(tmp_path / "hashed.py", "answer = 42\n")
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    source.write_text("answer = 43\n")
    found: dict[str, object] = {}
    made = Loader("hashed", str(source)).get_code("hashed")
    assert made is not None
    exec(made, found)
    assert found["answer"] == 43
