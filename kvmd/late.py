"""Modules that run when something of theirs is first used, not when they are imported.

Most of the time from a process's start to its first answer goes into modules, and half of them are for what comes
later or never. An import of one that :func:`start` named makes an empty module, which runs at the first look for an
attribute that it hasn't: ``from package import module`` leaves it empty, ``from module import name`` runs it.

A worker has no files after it has entered its sandbox, so code is read before (:func:`hold`), and run from memory.
"""

from __future__ import annotations

import importlib
import marshal
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from threading import RLock
from types import CodeType, ModuleType

from kvmd import finder
from kvmd.given import GIVEN

SELDOM = (
    # protobuf without its C extension
    "google.protobuf.descriptor_database",
    "google.protobuf.internal.python_edition_defaults",
    "google.protobuf.internal.python_message",
    # what others import for a fault's report, a class without a docstring, a locale of one's own, or a date
    *("ast", "dis", "inspect", "linecache", "locale", "opcode", "textwrap", "token", "tokenize", "traceback"),
    *("calendar", "google.protobuf.text_encoding", "platform", "typing_extensions"),
)
"""Modules of libraries that are imported by others, who seldom use them."""


class _Late(ModuleType):
    """A module that has not run yet."""

    def __getattr__(self, name: str) -> object:
        asked_by_import = name.startswith("__") and name != "__all__"  # whether it is a package, for one
        if not asked_by_import and isinstance(loader := self.__loader__, _Loader):
            loader.run(self)
        return ModuleType.__getattribute__(self, name)  # that of the class which it may have by now


class _Loader(finder.Loader):
    """Makes late modules, and runs them.

    :ivar held: the code, marshalled; None: it is read when it is wanted.
    """

    def __init__(self, name: str, path: str, held: bytes | memoryview | None = None) -> None:
        super().__init__(name, path)
        self.held, self._lock, self._runs = held, RLock(), False

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that is empty, nearly always."""
        module = _Late(spec.name)
        module.__dict__.update(GIVEN.get(spec.name, {}))
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing, yet."""

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code, from memory if it is there."""
        return super().get_code(fullname) if self.held is None else marshal.loads(self.held)  # noqa: S302

    def run(self, module: ModuleType) -> None:
        """Run a module that has not run yet; one that fails is as it was before, and its next user is told, too."""
        with self._lock:
            if self._runs or type(module) is not _Late:  # for one that it imports itself, or for another thread
                return
            self._runs, before = True, dict(module.__dict__)
            try:
                super().exec_module(module)
                object.__setattr__(module, "__class__", ModuleType)
                self.held = None
            except BaseException:
                module.__dict__.clear()
                module.__dict__.update(before)
                raise
            finally:
                self._runs = False


class _Finder:
    """Finds late modules, of which a name is known, or that of the package they are in."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.held: dict[str, tuple[str, bytes | memoryview]] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if (known := self.held.pop(name, None)) is not None:
            return spec_from_file_location(name, known[0], loader=_Loader(name, *known))
        if name not in self.names and not self._within(name):
            return None
        spec = finder.find(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec

    def _within(self, name: str) -> bool:
        """Whether it is in a package that is late."""
        while (end := name.rfind(".")) > 0:
            name = name[:end]
            if name in self.names:
                return True
        return False


_finder = _Finder()


def start(*names: str) -> None:
    """Have these modules, and those in these packages, run late, if they are imported from here on."""
    finder.start()
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.names.update(names)


def hold() -> None:
    """Keep in memory the code of all late modules that haven't run, whether they have been imported or not.

    From there on no module is looked for in the file system.
    """
    for late in _finder.names:
        module = importlib.import_module(late)
        directories = getattr(module, "__path__", None)
        sources = [(late, str(module.__file__))] if directories is None else _sources(late, directories[0])
        for name, path in sources:
            known = sys.modules.get(name)
            if known is None:
                _finder.held[name] = path, finder.code(name, path)
            elif isinstance(known, _Late) and isinstance(loader := known.__loader__, _Loader):
                loader.held = finder.code(name, path)
    finder.stop()


def rest(package: str) -> Iterator[None]:
    """Run the modules of a package that still are late, one a step and those that it imports."""
    late = [name for name, module in sys.modules.items() if isinstance(module, _Late)]
    for name in [*late, *_finder.held]:
        if name.startswith(package + "."):
            module = importlib.import_module(name)
            if isinstance(loader := module.__loader__, _Loader):
                loader.run(module)
            yield


def _sources(package: str, directory: str) -> Iterator[tuple[str, str]]:
    """A package's modules and the files of their sources."""
    yield package, os.path.join(directory, "__init__.py")
    with os.scandir(directory) as entries:
        for entry in entries:
            name = f"{package}.{entry.name.removesuffix('.py')}"
            if entry.name.endswith(".py") and entry.name != "__init__.py":
                yield name, entry.path
            elif entry.name.isidentifier() and os.path.exists(os.path.join(entry.path, "__init__.py")):
                yield from _sources(name, entry.path)
