"""The filter's program, run by an interpreter of our own: both architectures, every number, on any machine."""

from __future__ import annotations

import errno
import itertools
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.worker import bpf, seccomp

PID = 4242
ARCHES = {name: bpf.architecture(name) for name in ("x86_64", "aarch64")}
KILL, ALLOW, EPERM = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM


def interpret(program: bytes, number: int, audit: int, arguments=()) -> int:
    """Run classic BPF as linux/filter.h defines it; only what seccomp admits."""
    data = struct.pack("<iIQ6Q", number, audit, 0, *(tuple(arguments) + (0,) * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        op, true, false, k = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            at += k
        elif op == 0x06:
            return k
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += true if taken else false


def verdict(arch: str, number: int, *arguments: int, **options: bool) -> int:
    which = ARCHES[arch]
    return interpret(seccomp.build(which, PID, **options), number, which.audit, [a & (1 << 64) - 1 for a in arguments])


@pytest.mark.parametrize("arch", ARCHES)
def test_another_architectures_calls_kill(arch):
    program = seccomp.build(ARCHES[arch], PID)
    for audit in (0x40000003, 0x40000028, 0xC000003E, 0xC00000B7, 0):  # i386, arm, x86-64, aarch64
        if audit != ARCHES[arch].audit:
            assert interpret(program, 0, audit) == KILL


@given(number=st.integers(0x40000000, 0x7FFFFFFF) | st.integers(-(1 << 31), -1))
def test_x32_and_negative_numbers_kill(number):
    assert verdict("x86_64", number) == KILL


@pytest.mark.parametrize("arch", ARCHES)
def test_numbers_without_a_rule_are_refused(arch):
    column = ARCHES[arch].column
    known = {numbers[column] for numbers in seccomp._CALLS.values()} | {
        n[column] for n in seccomp._conditional(PID, threads=True)
    }
    for number in set(range(600)) - known:
        assert verdict(arch, number) == EPERM
    for numbers in seccomp._CALLS.values():
        if numbers[column] is not None:
            assert verdict(arch, numbers[column], *([(1 << 64) - 1] * 6)) == ALLOW


def names(path: str, pattern: str) -> dict[int, str]:
    return {int(number): name for name, number in re.findall(pattern, Path(path).read_text(), re.M)}


HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("arch", ARCHES)
def test_the_numbers_are_the_kernels(arch):
    if not Path(HEADERS[arch]).exists():
        pytest.skip(f"no {HEADERS[arch]}")
    kernel = names(HEADERS[arch], r"^#define __NR(?:3264)?_(\w+) (\d+)$")
    column = ARCHES[arch].column
    for name, numbers in (seccomp._CALLS | seccomp._WRITES).items():
        if numbers[column] is not None:
            assert kernel[numbers[column]] == name
    conditional = [
        "mmap",
        "mprotect",
        "ioctl",
        "sendto",
        "clone",
        "fcntl",
        "prctl",
        "tgkill",
        "newfstatat",
        "prlimit64",
    ]
    conditional += ["statx", "clone3", "faccessat2", "epoll_pwait2"]
    aliases = {"fstatat": "newfstatat"}
    found = [kernel[numbers[column]] for numbers in seccomp._conditional(PID, threads=True)]
    assert [aliases.get(name, name) for name in found] == conditional


NUMBERS = {"x86_64": 0, "aarch64": 1}
CALL = {
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "ioctl": (16, 29),
    "sendto": (44, 206),
    "clone": (56, 220),
    "fcntl": (72, 25),
    "prctl": (157, 167),
    "tgkill": (234, 131),
    "newfstatat": (262, 79),
    "prlimit64": (302, 261),
}
HIGH = 1 << 32

CASES = [
    ("mmap", (0, 1, 3, 0x22), True),
    ("mmap", (0, 1, 1, 0x01), True),  # a file, shared
    ("mmap", (0, 1, 4, 0x22), False),
    ("mmap", (0, 1, 7, 0x02), False),
    ("mmap", (0, 1, 3, 0x21), False),
    ("mmap", (0, 1, 3, 0x23), False),  # MAP_SHARED_VALIDATE
    ("mmap", (0, 1, 3, 0x122), False),
    ("mprotect", (0, 1, 3), True),
    ("mprotect", (0, 1, 4), False),
    ("ioctl", (0, 0x5421), True),
    ("ioctl", (0, 0x5412), False),
    ("sendto", (0, 0, 0, 0, 0), True),
    ("sendto", (0, 0, 0, 0, 1), False),
    ("sendto", (0, 0, 0, 0, HIGH), False),
    ("clone", (0x3D0F00,), True),
    ("clone", (0x7D0F00,), True),
    ("clone", (17,), False),
    ("clone", (0x3D0F00 | 0x20000,), False),
    ("fcntl", (0, 1030), True),
    ("fcntl", (0, 8), False),
    ("prctl", (15,), True),
    ("prctl", (4,), False),
    ("tgkill", (PID, 1, 6), True),
    ("tgkill", (1, 1, 6), False),
    ("newfstatat", (1, 0, 0, 0x1000), True),
    ("newfstatat", (1, 0, 0, 0), False),
    ("newfstatat", (1, 0, 0, 0x100), False),
    ("prlimit64", (0, 7, 0), True),
    ("prlimit64", (PID, 7, 0), True),
    ("prlimit64", (1, 7, 0), False),
    ("prlimit64", (0, 7, HIGH), False),
    ("prlimit64", (0, 7, 1), False),
]


@pytest.mark.parametrize(("case", "arch"), list(itertools.product(CASES, ARCHES)))
def test_arguments_decide(case, arch):
    name, arguments, passes = case
    assert (verdict(arch, CALL[name][NUMBERS[arch]], *arguments) == ALLOW) is passes


@given(prot=st.integers(0, 255), flags=st.integers(0, 0x1FF))
def test_no_mapping_is_executable_or_escapes_the_limit(prot, flags):
    allowed = verdict("x86_64", 9, 0, 4096, prot, flags) == ALLOW
    assert allowed is not bool(prot & 4 or flags & 0x100 or flags & 0x21 == 0x21)


@given(flags=st.integers(0, (1 << 32) - 1))
def test_clone_makes_threads_alone(flags):
    assert (verdict("x86_64", 56, flags) == ALLOW) is (flags in (0x3D0F00, 0x7D0F00))
    assert verdict("x86_64", 56, flags, threads=False) == EPERM


def test_writes_are_by_request():
    assert verdict("x86_64", 18) == EPERM
    assert verdict("x86_64", 18, writable=True) == ALLOW
    assert verdict("aarch64", 68, writable=True) == ALLOW


@pytest.mark.parametrize("arch", ARCHES)
def test_calls_that_libc_can_do_without_are_absent(arch):
    for number in (435, 439, 441):
        assert verdict(arch, number) == 0x00050000 | errno.ENOSYS


def test_an_unknown_architecture_has_no_filter():
    with pytest.raises(OSError, match="riscv64"):
        bpf.architecture("riscv64")


def test_both_wants_both():
    number = 7
    rules = {number: bpf.both(bpf.one_of(0, (1, 2)), bpf.one_of(1, (3, 4)))}
    program = bpf.assemble(ARCHES["aarch64"], rules, bpf.fail())
    for a, b in itertools.product(range(6), range(6)):
        passed = interpret(program, number, ARCHES["aarch64"].audit, (a, b)) == ALLOW
        assert passed is (a in (1, 2) and b in (3, 4))


def test_the_filter_holds_for_threads_that_run_already(run):
    assert run(
        "answers = []\nready, go = threading.Event(), threading.Event()\n"
        "def work():\n ready.set(); go.wait()\n try: socket.socket()\n except OSError as e: answers.append(e.errno)\n"
        "t = threading.Thread(target=work); t.start(); ready.wait()\n"
        "syscalls.prctl(38, 1); seccomp.install(threads=True, writable=False)\n"
        "go.set(); t.join(); tell(answers)"
    ) == [errno.EPERM]
