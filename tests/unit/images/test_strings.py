"""Arguments and environments against what the guest's own /proc said."""

from __future__ import annotations

from typing import Any

import pytest
from drgn.helpers.linux.mm import cmdline, environ
from drgn.helpers.linux.pid import find_task

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.strings import _split
from kvmd.v1 import process_pb2 as pb

ON_SWAP = ("swapped", "filed")


def raw(strings: list[str]) -> list[bytes]:
    return [s.encode("utf-8", "surrogateescape") for s in strings]


def users(opened: Any, there: bool = True) -> list[dict[str, Any]]:
    """Processes with memory of their own that were in the dump, whose strings are (not) in it."""
    alive = {p.pid for p in opened.image.processes(pb.GetProcsRequest())}
    found = (p for p in opened.truth["processes"] if p["pid"] in alive and not p["kthread"] and p["state"] != "Z")
    return [p for p in found if (p["zoo"] not in ON_SWAP) is there]


def test_arguments_and_environment_are_exact(dump: Any) -> None:
    processes = users(dump)
    assert len(processes) == 17
    for p in processes:
        arguments = dump.image.strings(p["pid"], pb.STRINGS_KIND_ARGUMENTS, 0)
        environment = dump.image.strings(p["pid"], pb.STRINGS_KIND_ENVIRONMENT, 0)
        assert list(arguments.values) == raw(p["argv"])
        assert list(environment.values) == raw(p["env"])
        assert not arguments.HasField("error")


def test_drgn_reads_the_same(dump: Any) -> None:
    for p in users(dump):
        if p["zoo"] == "cached":
            continue  # in the swap cache, where drgn does not look
        task = find_task(dump.image.kernel.prog, p["pid"])
        assert cmdline(task) == list(dump.image.strings(p["pid"], pb.STRINGS_KIND_ARGUMENTS, 0).values)
        assert environ(task) == list(dump.image.strings(p["pid"], pb.STRINGS_KIND_ENVIRONMENT, 0).values)


def test_what_is_on_swap_says_so(dump: Any) -> None:
    processes = users(dump, there=False)
    assert len(processes) == len(ON_SWAP)
    for p in processes:
        strings = dump.image.strings(p["pid"], pb.STRINGS_KIND_ARGUMENTS, 0)
        assert strings.error.reason == "NOT_PRESENT"
        assert int(strings.error.metadata["address"], 16) == p["arg_start"]
        assert list(strings.values) == []


def test_a_limit_cuts_and_keeps_the_part(qemu: Any) -> None:
    p = next(p for p in users(qemu) if p["zoo"] == "resident")
    assert list(qemu.image.strings(p["pid"], pb.STRINGS_KIND_ARGUMENTS, 16).values) == [b"bed-resident", b"in "]
    assert list(qemu.image.strings(p["pid"], pb.STRINGS_KIND_ARGUMENTS, 13).values) == [b"bed-resident"]


@pytest.mark.parametrize(
    ("pid", "kind", "reason"),
    [
        (2, pb.STRINGS_KIND_ARGUMENTS, Reason.NO_USER_MEMORY),
        (999_999, pb.STRINGS_KIND_ARGUMENTS, Reason.NO_SUCH_PROCESS),
        (0, pb.STRINGS_KIND_ARGUMENTS, Reason.NO_SUCH_PROCESS),
        (-1, pb.STRINGS_KIND_ENVIRONMENT, Reason.NO_SUCH_PROCESS),
        (1, pb.STRINGS_KIND_UNSPECIFIED, Reason.BAD_ARGUMENT),
    ],
)
def test_no_such_strings(qemu: Any, pid: int, kind: pb.StringsKind, reason: Reason) -> None:
    with pytest.raises(KvmError) as caught:
        qemu.image.strings(pid, kind, 0)
    assert caught.value.reason is reason


def test_a_zombie_has_no_memory(dump: Any) -> None:
    zombie = next(p for p in dump.truth["processes"] if p["state"] == "Z")
    with pytest.raises(KvmError) as caught:
        dump.image.strings(zombie["pid"], pb.STRINGS_KIND_ARGUMENTS, 0)
    assert caught.value.reason is Reason.NO_USER_MEMORY


def test_a_thread_has_its_groups_strings(qemu: Any) -> None:
    group = next(p for p in qemu.truth["processes"] if len(p["threads"]) > 1)
    thread = max(t["tid"] for t in group["threads"])
    assert thread != group["pid"]
    assert list(qemu.image.strings(thread, pb.STRINGS_KIND_ARGUMENTS, 0).values) == raw(group["argv"])


@pytest.mark.parametrize(
    ("data", "values"),
    [(b"", []), (b"a\0", [b"a"]), (b"a\0b", [b"a", b"b"]), (b"\0\0", [b"", b""]), (b"\xff\0", [b"\xff"])],
)
def test_split(data: bytes, values: list[bytes]) -> None:
    assert _split(data) == values
