"""Lists and strings over every transport, of every dump: the kernel's own list of tasks against the process list."""

from __future__ import annotations

import functools
import os

import pytest
from drgn import offsetof

import libkvm
from kvmd.images.base import File, Files
from kvmd.images.registry import open_image
from libkvm import Reason


@functools.cache
def layout(path: str) -> dict[str, int]:
    """Where members of task_struct are: of the same file, opened here."""
    fd = os.open(path, os.O_RDONLY)
    try:
        task = open_image(Files(File(fd, path))).kernel.prog.type("struct task_struct")
        return {name: offsetof(task, name) for name in ("tasks", "comm", "pid")}
    finally:
        os.close(fd)


def test_the_list_of_tasks(kernel, dump):
    at = layout(dump.path)
    head = dump.symbol("init_task") + at["tasks"]
    processes = {p.task_address: p for p in kernel.processes()}

    found = list(kernel.walk_list(head, link=at["tasks"], offset=at["comm"], length=16))

    assert [element.address for element in found] == sorted(processes, key=lambda a: processes[a].start_time_ns) or {
        element.address for element in found
    } == set(processes)
    for element in found:
        assert element.error is None
        assert os.fsdecode(element.data.split(b"\0")[0]) == processes[element.address].comm
    backward = [e.address for e in kernel.walk_list(head, link=at["tasks"], next=8)]
    assert backward == [element.address for element in reversed(found)]

    names = kernel.strings([element.address + at["comm"] for element in found], 16)
    assert [os.fsdecode(name.data) for name in names] == [processes[e.address].comm for e in found]
    assert all(name.whole and name.error is None for name in names)


def test_limits(kernel, dump):
    at = layout(dump.path)
    head = dump.symbol("init_task") + at["tasks"]
    every = list(kernel.walk_list(head, link=at["tasks"]))

    assert list(kernel.walk_list(head, link=at["tasks"], limit=3)) == every[:3]
    assert list(kernel.walk_list(head, link=at["tasks"], limit=len(every))) == every
    assert list(kernel.walk_list(head, link=at["tasks"], limit=0)) == []
    walk = kernel.walk_list(head, link=at["tasks"])
    assert next(walk) == every[0]
    walk.close()
    with pytest.raises(libkvm.RequestError):
        list(kernel.walk_list(head, length=1 << 20))
    with pytest.raises(libkvm.RequestError):
        list(kernel.walk_list(-1))


def test_strings(kernel, dump):
    banner = dump.symbol("linux_banner")
    text = dump.truth["banner"].encode() + b"\n"

    assert kernel.string(banner) == text[:255]
    assert kernel.string(banner, 5) == b"Linux"
    whole, cut, none = kernel.strings([banner, banner, 0x10], len(text))[:3]
    assert (whole.data, whole.whole, whole.error) == (text, True, None)
    assert cut == whole
    assert (none.data, none.whole, none.error.reason) == (b"", False, Reason.NOT_MAPPED)
    with pytest.raises(libkvm.FaultError):
        kernel.string(0x10)
    assert kernel.strings([]) == []
    many = kernel.strings([banner + n % 8 for n in range(20_000)], 4)
    assert [string.data for string in many] == [text[n % 8 : n % 8 + 4] for n in range(20_000)]
    with pytest.raises(libkvm.RequestError):
        kernel.strings([banner], 0)
    with pytest.raises(libkvm.RequestError):
        kernel.strings([banner], 1 << 16)


def test_a_string_of_a_process(kernel, dump):
    process = next(p for p in kernel.processes(arguments=True) if p.args and not p.args_error and p.args[0])
    truth = next(p for p in dump.truth["processes"] if p["pid"] == process.pid)

    assert kernel.string(truth["arg_start"], pid=process.pid) == os.fsencode(process.args[0])
