"""Calls every helper of drgn.helpers.linux on an image, with arguments out of the image, and tells what happened.

    python tests/guest/helpers.py truth VMLINUX DUMP > tests/data/FOLDER/helpers.json   # drgn alone, with DWARF
    python tests/guest/helpers.py table PLACE... > docs/drgn-helpers.md                 # kvmd's types and symbols

A place is a dump, or a directory of kernels.py with ``vmcore`` and ``vmlinux``: there, both are compared.

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

    :ivar how: ``works``; ``lacks``: the type of a variable that the kernel has; ``unfound``: a variable that it has
        by DWARF alone; ``absent``: the kernel has no such variable, type or member; ``fails``: on the dump's data;
        ``no sample``: nothing to call it with.
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
    """The kernel's name, and what helpers give with kvmd's finders and no file beside the dump."""
    from kvmd.images.base import File, Files
    from kvmd.images.linux.image import LinuxImage
    from kvmd.v1 import symbol_pb2

    kernel = LinuxImage(Files(File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path))).kernel
    kernel.need_types()
    task = kernel.builtin("init_task")
    searched = task is not None and task.source in (symbol_pb2.SYMBOL_SOURCE_CODE, symbol_pb2.SYMBOL_SOURCE_CONTENT)
    name = kernel.info.release + (", no KALLSYMS_ALL" if searched else "")
    return name, survey(kernel.prog, kernel.builtin)


def with_dwarf(vmlinux: str, dump: str) -> dict[str, Outcome]:
    """What helpers give with the kernel's vmlinux."""
    prog = drgn.Program()
    prog.set_core_dump(dump)
    prog.load_debug_info([vmlinux])
    return survey(prog, lambda name: False)


HOWS = ("works", "lacks", "unfound", "absent", "fails", "no sample")


SMALL = ", small"


def compared(place: str) -> tuple[str, dict[str, Outcome], str]:
    """A kernel's name, what helpers give, and of how many that work with DWARF the result is the same."""
    if not os.path.isdir(place):
        kernel, found = with_kvmd(place)
        return kernel + SMALL, found, "-"
    kernel, found = with_kvmd(f"{place}/vmcore")
    truth = with_dwarf(f"{place}/vmlinux", f"{place}/vmcore")
    for name, outcome in found.items():
        if outcome.how == "absent" and truth[name].how != "absent":
            found[name] = outcome._replace(how="unfound")
    same = [found[name] == outcome for name, outcome in truth.items() if outcome.how == "works"]
    return kernel, found, f"{sum(same)} of {len(same)}"


def table(places: list[str]) -> Iterator[str]:
    """Give the document."""
    rows = [compared(place) for place in places]
    yield HEAD
    yield "| kernel | work | lack a variable's type | not found | not in this kernel | fail on the dump's data " + (
        "| not tried | as with DWARF |"
    )
    yield "|---" * (len(HOWS) + 2) + "|"
    for kernel, found, same in rows:
        hows = [outcome.how for outcome in found.values()]
        yield f"| {kernel} | " + " | ".join(str(hows.count(how)) for how in HOWS) + f" | {same} |"
    yield "\n## What does not work\n"
    yield "| helper | " + " | ".join(kernel for kernel, _, _ in rows) + " |"
    yield "|---" * (len(rows) + 1) + "|"
    for name in rows[0][1]:
        outcomes = [found[name] for _, found, _ in rows]
        if any(outcome.how != "works" for outcome in outcomes):
            yield f"| {name} | " + " | ".join(map(_cell, outcomes)) + " |"


_PLAIN = {"works": "works", "no sample": "not tried", "unfound": "not found"}


def _cell(outcome: Outcome) -> str:
    if outcome.how in _PLAIN:
        return _PLAIN[outcome.how]
    text = re.sub(r"0x[0-9a-f]{6,}|\b\d{6,}\b", "N", str(outcome.what)).replace("|", "/")
    return f"{outcome.how}: {text.partition(': ')[2][:80]}"


HEAD = """# drgn's helpers without debuginfo

Made by `python tests/guest/helpers.py table PLACE...` of dumps that `tests/guest/kernels.py` made and of small ones in
`tests/data`; `tests/unit/images/test_helpers.py` keeps the count from going down.

drgn's functions of `drgn.helpers.linux`, each called on a dump with no file beside it, with the types and symbols
that kvmd finds inside it, and with arguments out of the dump (`tests/guest/samples.py`). "Works" means that nothing
was raised; "as with DWARF", of how many that work with the DWARF vmlinux of the same build the result is the same.
"Lack": the kernel has the variable, but its type is not known. "Not found": of a kernel without KALLSYMS_ALL, whose
symbol table has no data, what kvmd does not look for: what it does, and how that is proved, is in
`kvmd/images/linux/objects/`. "Not in this kernel": it was built without it, or has no such member any more; drgn does
not find it with DWARF either. "Not tried": nothing in these dumps is of the kind that the function takes.
"""


def main() -> None:
    """Print the document."""
    how, *paths = sys.argv[1:]
    if how == "table":
        sys.stdout.write("\n".join(table(paths)) + "\n")
        return
    vmlinux, dump = paths
    found = with_dwarf(vmlinux, dump)
    json.dump({name: list(outcome) for name, outcome in found.items()}, sys.stdout, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
