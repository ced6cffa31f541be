"""Finds and reads modules as Python does, with a third of its system calls: a start imports three hundred of them.

Each directory is listed once, and a module's code is read beside its source, without a file object. All that is out of
the ordinary (archives, packages without a file or that are shared objects, relative paths, what was written since) is
left to Python's own finder, which comes next.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, spec_from_file_location
from struct import Struct
from types import CodeType

_HEADER = Struct("<4sIII")  # of a .pyc file: the magic number, no flags, the source's time and size
_U32 = 0xFFFFFFFF
_SUFFIX = f".{sys.implementation.cache_tag}.pyc"


class Finder:
    """One of ``sys.meta_path``, before PathFinder."""

    def __init__(self) -> None:
        self._listed: dict[str, frozenset[str] | None] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        tail = name.rpartition(".")[2]
        for directory in sys.path if path is None else path:
            names = self._names(directory)
            if names is None:
                return None
            if tail in names:
                inside = f"{directory}/{tail}"
                known = "__init__.py" in (self._names(inside) or ())
                return _spec(name, f"{inside}/__init__.py", inside) if known else None
            for suffix in EXTENSION_SUFFIXES:
                if tail + suffix in names:
                    file = f"{directory}/{tail}{suffix}"
                    return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))
            if tail + ".py" in names:
                return _spec(name, f"{directory}/{tail}.py")
        return None

    def _names(self, directory: str) -> frozenset[str] | None:
        """What is in a directory, nothing if there is none; None where this finder knows nothing."""
        if directory not in self._listed:
            try:
                self._listed[directory] = frozenset(os.listdir(directory)) if directory.startswith("/") else None
            except FileNotFoundError:
                self._listed[directory] = frozenset()
            except OSError:
                self._listed[directory] = None
        return self._listed[directory]


class Loader(SourceFileLoader):
    """Reads modules."""

    def get_code(self, fullname: str) -> CodeType | None:
        """A module's code, as it is kept if it is."""
        kept = _kept(self.path)
        if kept is None:
            return super().get_code(fullname)
        code: CodeType = marshal.loads(kept)  # noqa: S302 - as Python does
        return code


def start() -> None:
    """Find and read all that is imported from here on."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _finder)


def stop() -> None:
    """Look for no module in the file system any more, Python's own finder neither."""
    for finder in (_finder, PathFinder):
        sys.meta_path.remove(finder)


def find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Find a module in the file system, in a package's path or in Python's."""
    return _finder.find_spec(name, path) or PathFinder.find_spec(name, path)


def code(name: str, path: str) -> bytes | memoryview:
    """A module's code, marshalled: as it is kept beside its source, or compiled."""
    kept = _kept(path)
    return marshal.dumps(SourceFileLoader(name, path).get_code(name)) if kept is None else kept


def _spec(name: str, path: str, inside: str | None = None) -> ModuleSpec | None:
    """What spec_from_file_location() makes, which asks for what is known here."""
    spec = ModuleSpec(name, Loader(name, path), origin=path)
    spec.has_location, spec.cached = True, _place(path)
    spec.submodule_search_locations = None if inside is None else [inside]
    return spec


def _kept(path: str) -> memoryview | None:
    """A module's code as it is kept beside its source (PEP 552), not copied; None if that is of another source."""
    try:
        status = os.stat(path)
        kept = _read(_place(path))
    except OSError:
        return None
    header = _HEADER.pack(MAGIC_NUMBER, 0, int(status.st_mtime) & _U32, status.st_size & _U32)
    return memoryview(kept)[_HEADER.size :] if kept.startswith(header) else None


def _place(path: str) -> str:
    """Where a module's code is kept: what cache_from_source() makes of nearly all paths, in a fifth of the time."""
    directory, _, name = path.rpartition("/")
    usual = directory and sys.pycache_prefix is None and not sys.flags.optimize
    if usual and name.endswith(".py") and name.count(".") == 1:
        return f"{directory}/__pycache__/{name[:-3]}{_SUFFIX}"
    return cache_from_source(path)


def _read(path: str) -> bytes:
    """A file's bytes, in half the time that a file object takes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


_finder = Finder()
