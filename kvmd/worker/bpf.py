"""Seccomp filters as classic BPF: instructions, the handful of rules that are needed, and how to load them.

Sources: seccomp(2), Documentation/userspace-api/seccomp_filter.rst, linux/filter.h, linux/seccomp.h.
A filter sees registers and can't follow pointers. Both architectures are little-endian, so the low half of an
argument comes first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kvmd import syscalls

_LOAD, _AND, _JA, _JEQ, _JGE, _JSET, _RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06

ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1
_X32_BIT = 0x40000000

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false (both relative), constant."""
Rule = tuple[Instruction, ...]
"""What is done with one system call: always ends in a return."""


def _ret(action: int) -> Instruction:
    return (_RET, 0, 0, action)


def _load(argument: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * argument + 4 * high)


def fail(code: int = errno.EPERM) -> Rule:
    """Let the call fail with an errno."""
    return (_ret(_ERRNO | code),)


def allow() -> Rule:
    """Let the call pass."""
    return (_ret(ALLOW),)


def one_of(argument: int, values: Iterable[int], code: int = errno.EPERM) -> Rule:
    """Pass if the low half of an argument is one of the values; for arguments that the kernel takes as an int."""
    tests = [part for value in values for part in ((_JEQ, 0, 1, value), _ret(ALLOW))]
    return (_load(argument), *tests, *fail(code))


def without(argument: int, mask: int) -> Rule:
    """Pass if no bit of the mask is set in an argument's low half."""
    return (_load(argument), (_JSET, 1, 0, mask), _ret(ALLOW), *fail())


def having(argument: int, mask: int, code: int = errno.EPERM) -> Rule:
    """Pass if a bit of the mask is set in an argument's low half."""
    return (_load(argument), (_JSET, 0, 1, mask), _ret(ALLOW), *fail(code))


def null(argument: int) -> Rule:
    """Pass if a pointer is NULL."""
    low, high = _load(argument), _load(argument, high=True)
    return (low, (_JEQ, 0, 3, 0), high, (_JEQ, 0, 1, 0), _ret(ALLOW), *fail())


def both(first: Rule, second: Rule) -> Rule:
    """Pass if both rules do: where the first would pass, the second goes on."""
    body = list(first)
    for index, instruction in enumerate(body):
        if instruction == _ret(ALLOW):
            body[index] = (_JA, 0, 0, len(body) - index - 1)
    return (*body, *second)


def not_both_set(argument: int, mask: int) -> Rule:
    """Pass unless all bits of the mask are set in an argument's low half."""
    return (_load(argument), (_AND, 0, 0, mask), (_JEQ, 1, 0, mask), _ret(ALLOW), *fail())


class Architecture(NamedTuple):
    """What a filter needs to know of a processor.

    :ivar audit: AUDIT_ARCH_* of linux/audit.h.
    :ivar column: its column in the table of numbers.
    :ivar seccomp: the number of seccomp(2).
    :ivar x32: whether numbers with bit 30 set are another ABI's, with calls of its own.
    """

    audit: int
    column: int
    seccomp: int
    x32: bool


_ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 0, 317, x32=True),
    "aarch64": Architecture(0xC00000B7, 1, 277, x32=False),
}


def architecture(machine: str | None = None) -> Architecture:
    """The running kernel's architecture.

    :raises OSError: ENOSYS: kvmd has no table of system calls for it.
    """
    machine = machine or os.uname().machine
    try:
        return _ARCHITECTURES[machine]
    except KeyError:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}") from None


def assemble(arch: Architecture, rules: Mapping[int, Rule], otherwise: Rule) -> bytes:
    """Build a filter: another architecture's calls kill the process, calls without a rule get ``otherwise``."""
    kill = _ret(_KILL_PROCESS)
    program: list[Instruction] = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, arch.audit), kill, (_LOAD, 0, 0, 0)]
    if arch.x32:
        program += [(_JGE, 0, 1, _X32_BIT), kill]
    for number, rule in rules.items():
        program += [(_JEQ, 0, len(rule), number), *rule]
    program += otherwise
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install(arch: Architecture, program: bytes) -> None:
    """Filter every thread of this process from now on; needs no_new_privs.

    :raises OSError: the kernel refuses, or a thread can't be brought in.
    """
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    thread = syscalls.syscall(arch.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, header, name="seccomp")
    if thread:
        raise OSError(errno.EBUSY, f"seccomp: thread {thread} has a filter of its own")
