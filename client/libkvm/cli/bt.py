"""``kvmctl bt``: kernel stacks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from libkvm.cli.command import Answer, Command
from libkvm.kernel import Kernel
from libkvm.printable import printable
from libkvm.records import Frame, Stack

_ENDS = {
    "user": "from user space",
    "no_unwind": "stopped: nothing tells how this code uses its stack",
    "corrupt": "stopped: the stack makes no sense from here on",
    "limit": "stopped: too many frames",
    "no_stack": "no stack: the task has ended",
}
_MARKS = {"interrupted": " <interrupted>", "inline": " (inlined)", "found": " (found by search)"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("pid", nargs="?", type=int, metavar="PID", help="of the thread with this id")
    whose.add_argument("-c", "--cpu", type=int, help="of what this CPU runs")
    whose.add_argument("-a", "--all", action="store_true", help="of all threads and idle CPUs")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Unwind stacks."""
    if options.all:
        found = kernel.stacks(timeout=options.timeout)
    else:
        found = [kernel.stack(options.pid, cpu=options.cpu, timeout=options.timeout)]
    return Answer({"stacks": found}, _lines(found))


def _lines(found: Sequence[Stack]) -> Iterator[str]:
    for number, stack in enumerate(found):
        if number:
            yield ""
        cpu = "" if stack.cpu is None else f"  CPU: {stack.cpu}"
        yield f"PID: {stack.pid}  TASK: {stack.task_address:016x}{cpu}  COMMAND: {printable(stack.comm)}"
        yield from (_frame(index, frame) for index, frame in enumerate(stack.frames))
        if stack.error is not None:
            yield f"    stopped: {printable(stack.error.message)}"
        elif stack.end in _ENDS:
            yield f"    {_ENDS[stack.end]}"


def _frame(index: int, frame: Frame) -> str:
    place = "" if frame.kind == "inline" or not frame.symbol else f"+{frame.offset:#x}"
    module = f" [{printable(frame.module)}]" if frame.module else ""
    mark = _MARKS.get(frame.kind, "")
    return f"#{index:<3} {frame.pc:016x} {printable(frame.symbol) or '?'}{place}{module}{mark}"


COMMAND = Command("show kernel stacks", run, arguments)
