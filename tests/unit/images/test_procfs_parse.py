"""Parsers of /proc's texts: any bytes give an answer or CORRUPT_DATA."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason
from kvmd.images.procfs import parse
from procfs import stat_line

PARSERS = [
    parse.stat, parse.ids, parse.load_average, parse.cpu_times, parse.possible_cpus, parse.swaps, parse.fdinfo,
    parse.memory,
]  # fmt: skip
_PIECES = [b"5 (x) S", b"Tgid:\t1\n", b"Uid:\t", b"Gid:\t", b"cpu", b"cpu0 ", b"pos:\t", b"-1 ", b"9" * 30, b" 1"]
_PIECES += [b"\n", b"flags:\t08\n", b"MemTotal: 1 kB\n", b"CPU0", b")", b"(", b"\\040", b"partition ", b"1.5", b"nan"]
SHAPED = st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(_PIECES), max_size=40).map(b"".join))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
@given(SHAPED)
def test_parsers_answer_or_say_that_the_text_is_corrupt(parser, text):
    try:
        parser(text)
    except KvmError as failure:
        assert failure.reason is Reason.CORRUPT_DATA


I32 = st.integers(-(1 << 31), (1 << 31) - 1)


@given(st.binary(max_size=64), I32, I32, st.integers(-20, 19), st.integers(0, 1 << 63))
def test_stat_is_read_back_whatever_the_name_holds(comm, ppid, sid, nice, start):
    found = parse.stat(stat_line(comm, ppid=ppid, sid=sid, nice=nice, start=start))
    assert (found.ppid, found.sid, found.nice) == (ppid, max(sid, 0), nice)
    assert (found.start, found.vsize, found.threads, found.state) == (start, 8192, 1, "S")


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_terminals_are_packed_as_makedev_does(major, minor):
    number = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    signed = number - (1 << 32) if number >= 1 << 31 else number
    expected = os.makedev(major, minor) if number else None
    assert parse.stat(stat_line(tty=signed)).tty == expected


@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda path: b"\0" not in path), max_size=4))
def test_paths_of_swap_areas_are_unescaped(paths):
    def escape(path):
        return b"".join(b"\\%03o" % byte if byte in b" \t\n\\\v\f\r" else bytes([byte]) for byte in path)

    lines = [b"%s  partition\t1020\t\t4\t\t-2\n" % escape(path) for path in paths]
    found = parse.swaps(b"Filename\tType\tSize\tUsed\tPriority\n" + b"".join(lines))
    assert [area.path for area in found] == paths
    assert all(
        (area.kind, area.size, area.used, area.priority) == ("partition", 1020 << 10, 4096, -2) for area in found
    )


@pytest.mark.parametrize(
    ("comm", "kernel_thread", "expected"),
    [
        (b"bash\n", False, b"bash"),
        (b"a\nb\n", False, b"a\nb"),
        (b"\n", False, b""),
        (b"kworker/0:1-events\n", True, b"kworker/0:1"),
        (b"kworker/u16:2+flush-254:0\n", True, b"kworker/u16:2"),
        (b"kworker/1:0H-kblockd\n", True, b"kworker/1:0H"),
        (b"kworker/R-writeback\n", True, b"kworker/R-write"),
        (b"kworker/0:1-mine\n", False, b"kworker/0:1-min"),
        (b"irq/24-aerdrv-and-more\n", True, b"irq/24-aerdrv-a"),
    ],
)
def test_names_are_those_of_the_task(comm, kernel_thread, expected):
    assert parse.name(comm, kernel_thread=kernel_thread) == expected
