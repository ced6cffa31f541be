"""Calls every helper of drgn.helpers.linux on an image, with arguments out of the image, and tells what happened.

    python tests/guest/helpers.py truth VMLINUX DUMP > tests/data/FOLDER/helpers.json   # drgn alone, with DWARF
    python tests/guest/helpers.py table DUMP... > docs/drgn-helpers.md                  # kvmd's types and symbols

A helper works if it raises nothing; one that yields is drawn from up to a bound. ``samples.py`` says where arguments
come from.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import drgn
import drgn.helpers.linux

sys.path.insert(0, os.path.dirname(__file__))
from samples import NoSample, Samples

MOST = 8
BUILT_IN = {
    "per_cpu_ptr": ("ptr", "cpu"),
    "pid_task": ("pid", "pid_type"),
    "task_cpu": ("task",),
    "task_on_cpu": ("task",),
    "task_thread_info": ("task",),
}


class Outcome(NamedTuple):
    """What a call gave.

    :ivar how: ``works``; ``lacks``: the type of a variable that the kernel has; ``absent``: the kernel has no such
        variable, type or member; ``fails``: on the dump's data; ``no sample``: nothing to call it with.
    """

    how: str
    what: Any


def helpers() -> Iterator[tuple[str, Callable[..., Any], tuple[str, ...]]]:
    """Give every public function by its module and name, and the parameters that it needs."""
    for info in pkgutil.iter_modules(drgn.helpers.linux.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"drgn.helpers.linux.{info.name}")
        for name in getattr(module, "__all__", ()):
            function = getattr(module, name)
            if inspect.isclass(function) or not callable(function):
                continue
            yield f"{info.name}.{name}", function, BUILT_IN.get(name) or _needed(function)


def _needed(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind not in variable)


def plain(value: Any, depth: int = 0) -> Any:
    """What two programs should agree on of a result."""
    if isinstance(value, drgn.Object):
        return _plain_object(value)
    if isinstance(value, drgn.Type):
        return value.type_name()
    if isinstance(value, str | int | float | type(None)):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if depth < 3 and isinstance(value, Iterator | list | tuple | set | dict):
        items = value.items() if isinstance(value, dict) else value
        return [plain(item, depth + 1) for item in islice(items, MOST)]
    return type(value).__name__


def _plain_object(value: drgn.Object) -> Any:
    kind = value.type_
    while kind.kind is drgn.TypeKind.TYPEDEF:
        kind = kind.type
    scalar = (drgn.TypeKind.POINTER, drgn.TypeKind.INT, drgn.TypeKind.BOOL, drgn.TypeKind.ENUM)
    if kind.kind in scalar:
        return int(value.value_())
    return value.address_ if value.address_ is not None else value.type_.type_name()


def call(function: Callable[..., Any], arguments: list[Any]) -> Any:
    """Call a helper; what it prints is its result."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = plain(function(*arguments))
    return printed.getvalue()[:1000] if result is None and printed.getvalue() else result


def survey(prog: drgn.Program, known: Callable[[str], object]) -> dict[str, Outcome]:
    """Call every helper.

    :param known: whether the kernel has a symbol.
    """
    found, samples = {}, Samples(prog)
    for name, function, needed in helpers():
        try:
            arguments = [samples.get(name, parameter) for parameter in needed]
            found[name] = Outcome("works", call(function, arguments))
        except NoSample:
            found[name] = Outcome("no sample", "")
        except Exception as e:
            found[name] = Outcome(_how(e, known), f"{type(e).__name__}: {e}")
    return found


def _how(e: Exception, known: Callable[[str], object]) -> str:
    if isinstance(e, drgn.ObjectNotFoundError):
        return "lacks" if known(e.name) else "absent"
    missing = isinstance(e, AttributeError) or str(e).startswith("could not find")
    return "absent" if missing else "fails"


def with_kvmd(path: str) -> tuple[str, dict[str, Outcome]]:
    """The kernel's release, and what helpers give with kvmd's finders and no file beside the dump."""
    from kvmd.images.base import File, Files
    from kvmd.images.linux.image import LinuxImage

    kernel = LinuxImage(Files(File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path))).kernel
    kernel.need_types()
    return kernel.info.release, survey(kernel.prog, kernel.builtin)


HOWS = ("works", "lacks", "absent", "fails", "no sample")


def table(paths: list[str]) -> Iterator[str]:
    """Give the document."""
    surveys = dict(map(with_kvmd, paths))
    yield HEAD
    yield "| kernel | work | lack a variable's type | not in this kernel | fail on the dump's data | not tried |"
    yield "|---" * 6 + "|"
    for release, found in surveys.items():
        hows = [outcome.how for outcome in found.values()]
        yield f"| {release} | " + " | ".join(str(hows.count(how)) for how in HOWS) + " |"
    yield "\n## What does not work\n"
    yield "| helper | " + " | ".join(surveys) + " |"
    yield "|---" * (len(surveys) + 1) + "|"
    for name in next(iter(surveys.values())):
        outcomes = [found[name] for found in surveys.values()]
        if any(outcome.how != "works" for outcome in outcomes):
            yield f"| {name} | " + " | ".join(map(_cell, outcomes)) + " |"


def _cell(outcome: Outcome) -> str:
    if not outcome.how.startswith(("lacks", "absent", "fails")):
        return {"works": "works", "no sample": "not tried"}[outcome.how]
    text = re.sub(r"0x[0-9a-f]{6,}|\b\d{6,}\b", "N", str(outcome.what)).replace("|", "/")
    return f"{outcome.how}: {text.partition(': ')[2][:80]}"


HEAD = """# drgn's helpers without debuginfo

Made by `python tests/guest/helpers.py table DUMP...`; `tests/unit/images/test_helpers.py` keeps the count from going
down.

drgn's functions of `drgn.helpers.linux`, each called on a dump with no file beside it, with the types and symbols that
kvmd finds inside it, and with arguments out of the dump (`tests/guest/samples.py`). "Works" means that nothing was
raised, and of the Debian 6.1 dump that the result is what drgn gives with the DWARF vmlinux of the same build. "Lacks":
the kernel has the variable, but its type is not known. "Absent": the kernel was built without it, or has no such member
any more; drgn would not find it with DWARF either. Of 6.1.176-nodata and 6.1.0-56-cloud-arm64, which were built without
CONFIG_KALLSYMS_ALL, it may also be a variable that kvmd does not find: their symbol tables have no data, and what is
looked for, and how it is proved, is in `kvmd/images/linux/objects/`. "Not tried": nothing in these dumps is of the kind
that the function takes.
"""


def main() -> None:
    """Print the document."""
    how, *paths = sys.argv[1:]
    if how == "table":
        sys.stdout.write("\n".join(table(paths)) + "\n")
        return
    vmlinux, dump = paths
    prog = drgn.Program()
    prog.set_core_dump(dump)
    prog.load_debug_info([vmlinux])
    found = survey(prog, lambda name: False)
    json.dump({name: list(outcome) for name, outcome in found.items()}, sys.stdout, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
