"""drgn on a dump's file, and drgn with a memory hook that reads through libkvm: symbols, and a walk over all tasks."""

from __future__ import annotations

import os

from drgn import Architecture, Platform, Program
from drgn.helpers.linux import for_each_task
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

import libkvm
from bench.measure import in_turn, seconds
from bench.rows import Row, Subject, program
from kvmd.images.base import File, Files
from kvmd.images.linux.btf import Btf
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.symbols import Kallsyms
from kvmd.images.linux.types import Types
from kvmd.images.linux.variables import Variables

_ALL = (1 << 64) - 1


def hooked(kernel: libkvm.Kernel, vmcoreinfo: bytes) -> Program:
    """A Program that has no file: each of its reads is one of libkvm's."""
    prog = Program(Platform(Architecture.X86_64))
    prog.set_enabled_debug_info_finders([])
    prog.set_linux_kernel_custom(vmcoreinfo, False)
    prog.add_memory_segment(0, _ALL, kernel.reader(), False)
    return prog


def tasks(prog: Program, btf: Btf) -> list[tuple[int, bytes]]:
    """The symbols, then each task's id and name; both sides get their types from the same BTF."""
    index = load_vmlinux_kallsyms(prog)
    types = Types(prog, btf)
    prog.register_type_finder("bench", types.find, enable_index=0)
    prog.register_object_finder("bench", Variables(prog, types, Kallsyms(lambda: index)).find, enable_index=0)
    return [(task.pid.value_(), task.comm.string_()) for task in for_each_task(prog)]


def walk(subject: Subject, rounds: int) -> Row:
    """Both sides begin anew each round; libkvm's pages are warm after the first, as are the file's."""
    fd = os.open(subject.path, os.O_RDONLY)
    kernel = LinuxImage(Files(File(fd, subject.name))).kernel
    btf, vmcoreinfo = Btf(kernel._btf_in_memory()), kernel.info.text  # noqa: SLF001 - the types themselves
    found: list[list[tuple[int, bytes]]] = []

    def run(prog: Program) -> float:
        return seconds(lambda: found.append(tasks(prog, btf)))

    ours, theirs = in_turn(lambda: run(hooked(subject.kernel, vmcoreinfo)), lambda: run(program(subject.path)), rounds)
    os.close(fd)
    assert all(each == found[0] for each in found)
    what = f"drgn: kallsyms and {len(found[0])} tasks through libkvm: {subject.name}"
    return Row(what, "drgn on the file", ours, theirs, 2, unit="in all")
