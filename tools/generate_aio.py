"""Generates client/libkvm/aio from the modules of the synchronous face; --check fails if what is committed differs.

What becomes asynchronous follows from the calls: a function that calls a transport, or a function that does, is a
coroutine; one that also yields is an asynchronous generator. Each source is edited in place at the positions that its
syntax tree tells, so that names, signatures, comments and docstrings stay as they are. Modules that make no calls are
shared, not copied.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "client" / "libkvm"
TARGET = SOURCES / "aio"
RUFF = Path(sys.executable).with_name("ruff")

MODULES = {
    "transports/base": "base", "session": "session", "handle": "handle", "memory": "memory", "following": "following",
    "writing": "writing",
    "pages": "pages", "processes": "processes", "stacks": "stacks", "system": "system", "kernel": "kernel",
    "client": "client",
}  # fmt: skip
HAND_WRITTEN = {"__init__", "grpc", "opening", "transports"}
MOVED = {f"libkvm.{old.replace('/', '.')}": f"libkvm.aio.{new}" for old, new in MODULES.items()}
MOVED["libkvm.transports"] = "libkvm.aio.transports"
MOVED["libkvm.fast.memory"] = "libkvm.aio.memory"  # the twin has no fast path: its waits would hold up the loop

COROUTINES = {"unary", "close"}  # of a transport;
ITERATORS = {"stream"}  # what else is asynchronous follows
WRAPPED = {"open": "opening"}  # coroutines whose result is a context manager too
RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
ANNOTATIONS = {"Iterator": "AsyncIterator", "Generator": "AsyncGenerator"}
WORDS = {
    "A context manager": "An asynchronous context manager",
    "Safe to use from several threads.": "Safe to use from several tasks of one event loop.",
    "safe to use from several threads, which": "safe to use from several tasks of one event loop, which",
}

NOQA = "# ruff: noqa: ASYNC109 - deadlines are the calls' own, as in the synchronous face"

Function = ast.FunctionDef
Edit = tuple[int, int, str]


class Module:
    """A source and the positions in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = read(SOURCES / f"{name}.py")
        if not self.text.isascii():
            raise SystemExit(f"{name}.py: columns of the tree count bytes; keep to ASCII")
        self.tree = ast.parse(self.text)
        self._lines = [0]
        for line in self.text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self._lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def called(node: ast.AST | None) -> str:
    """The name of the function that a node calls; empty if it calls none."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def closing(node: ast.expr) -> ast.expr | None:
    """What contextlib.closing() is called with, if a node is that."""
    return node.args[0] if called(node) == "closing" and isinstance(node, ast.Call) else None


def iterates(node: ast.AST | None) -> bool:
    return called(node) in ITERATORS


def yields(function: Function) -> bool:
    return any(isinstance(node, ast.Yield) for node in ast.walk(function))


def passes_on(function: Function) -> bool:
    """Whether a function only returns an iterator that another makes."""
    calls = [node for node in ast.walk(function) if iterates(node)]
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    return bool(calls) and all(call in returned for call in calls)


def awaits(function: Function) -> bool:
    names = {called(node) for node in ast.walk(function)}
    return bool(names & COROUTINES) or bool(names & ITERATORS and not passes_on(function))


def settle(modules: list[Module]) -> None:
    """Find all that is asynchronous, until nothing new is found."""
    known = -1
    while known != len(COROUTINES) + len(ITERATORS):
        known = len(COROUTINES) + len(ITERATORS)
        for function in (each for module in modules for each in module.functions()):
            if passes_on(function) or (awaits(function) and yields(function)):
                ITERATORS.add(function.name)
            elif awaits(function):
                COROUTINES.add(function.name)


def function_edits(module: Module, function: Function) -> Iterator[Edit]:
    name, at = function.name, module.start(function)
    names = {getattr(each, "name", "") for each in getattr(module.parents[function], "body", [])}
    paired = name in RENAMED and bool(names & set(RENAMED) & COROUTINES)
    if paired:
        where = module.text.index(name, at)
        yield where, where + len(name), RENAMED[name]
    generator = name in ITERATORS and yields(function)
    if generator or name in COROUTINES or paired:
        yield at, at, f"@{WRAPPED[name]}\n    async " if name in WRAPPED else "async "
    if name in ITERATORS and isinstance(function.returns, ast.Subscript):
        kind = function.returns.value
        yield module.start(kind), module.end(kind), ANNOTATIONS[ast.unparse(kind)]


def call_edits(module: Module, call: ast.Call) -> Iterator[Edit]:
    parent = module.parents[call]
    start, end = module.start(call), module.end(call)
    if called(call) in COROUTINES:
        inside = isinstance(parent, ast.Attribute | ast.Subscript)
        yield start, start, "(await " if inside else "await "
        if inside:
            yield end, end, ")"
    elif iterates(call) and isinstance(parent, ast.Call) and called(parent) != "closing":
        yield start, start, "[item async for item in "
        yield end, end, "]"


def loop_edits(module: Module, function: Function) -> Iterator[Edit]:
    """Edits of what iterates: loops, comprehensions, and contexts that close an iterator."""
    local = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and iterates(node.value):
            local |= {ast.unparse(target) for target in node.targets}
        if isinstance(node, ast.With) and iterates(closing(node.items[0].context_expr)):
            yield module.start(node), module.start(node), "async "
            at = module.text.index("closing", module.start(node))
            yield at, at, "a"
            local.add(ast.unparse(node.items[0].optional_vars or ast.Constant(None)))
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.comprehension) and (iterates(node.iter) or ast.unparse(node.iter) in local):
            at = module.text.rindex("for ", 0, module.start(node.target))
            yield at, at, "async "


def import_edits(module: Module, node: ast.ImportFrom) -> Iterator[Edit]:
    at = module.text.index(node.module or "", module.start(node))
    if node.module in MOVED:
        yield at, at + len(node.module), MOVED[node.module]
    elif node.module == "collections.abc":
        first = module.text.index(node.names[0].name, at + len(node.module))
        yield first, first, "AsyncGenerator, AsyncIterator, "


def edits(module: Module) -> Iterator[Edit]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield from function_edits(module, node)
            yield from loop_edits(module, node)
        elif isinstance(node, ast.Call):
            yield from call_edits(module, node)
        elif isinstance(node, ast.ImportFrom):
            yield from import_edits(module, node)


def rewrite(module: Module) -> str:
    text = module.text
    for start, end, new in sorted(set(edits(module)), reverse=True):
        text = text[:start] + new + text[end:]
    for old, new in WORDS.items():
        text = text.replace(old, new)
    if re.search(r"^\s*@opening$", text, re.M):
        text = text.replace("\nfrom libkvm.", "\nfrom libkvm.aio.opening import opening\nfrom libkvm.", 1)
    return text


def tidy(text: str, path: Path) -> str:
    """Sort and drop imports, and break lines, as the rest of the project has them."""
    for words in (["check", "--fix-only", "--quiet", "--select", "I,F401"], ["format", "--quiet"]):
        command = [RUFF, *words, "--stdin-filename", path, "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def generated() -> dict[Path, str]:
    modules = [Module(name) for name in MODULES]
    for old in WORDS:
        if not any(old in module.text for module in modules):
            raise SystemExit(f"no source says {old!r} any more")
    settle(modules)
    answer = {}
    for module in modules:
        path = TARGET / f"{MODULES[module.name]}.py"
        note = f"# Generated by tools/generate_aio.py from client/libkvm/{module.name}.py; do not edit.\n"
        text = rewrite(module)
        answer[path] = tidy(note + (f"{NOQA}\n" if "timeout:" in text else "") + text, path)
    return answer


def read(path: Path) -> str:
    return path.read_text("utf-8")


def main() -> int:
    wanted = generated()
    there = {path for path in TARGET.glob("*.py") if path.stem not in HAND_WRITTEN}
    if sys.argv[1:] == ["--check"]:
        wrong = [
            path.name for path in sorted(there | set(wanted)) if not path.exists() or wanted.get(path) != read(path)
        ]
        if wrong:
            print(f"client/libkvm/aio differs: run tools/generate_aio.py ({', '.join(wrong)})", file=sys.stderr)
        return 1 if wrong else 0
    for path in there - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
