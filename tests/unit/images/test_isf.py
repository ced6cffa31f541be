"""Volatility's symbol files as execfile: a real one, of the dump's own build, and what is wrong with others.

``linux-5.10/isf.json.xz`` is ``dwarf2json linux --elf vmlinux`` of the vmlinux that dwarf.json is of.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import lzma
import os
import random
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import DATA, fixture
from kernel_page import CHECKS, cells
from kernel_truth import of_fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.linux import packed
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import symbol_pb2 as pb

from .test_btffile import blob
from .test_execfile import vmlinux

PACKED = (DATA / "linux-5.10" / "isf.json.xz").read_bytes()
PLAIN = lzma.decompress(PACKED)
With = Callable[..., LinuxImage]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[With]:
    """Opens a dump with an execfile of given bytes."""
    fds: list[int] = []

    def image(data: bytes, dump: str = "linux-5.10/vmcore.kdump") -> LinuxImage:
        path = tmp_path / f"exec{len(fds)}"
        path.write_bytes(data)
        fds.extend(os.open(name, os.O_RDONLY | os.O_CLOEXEC) for name in (fixture(dump).path, path))
        return LinuxImage(Files(File(fds[-2], "vmcore"), File(fds[-1], "exec")))

    yield image
    for fd in fds:
        os.close(fd)


def fails(opened: With, data: bytes, dump: str = "linux-5.10/vmcore.kdump") -> KvmError:
    with pytest.raises(KvmError) as caught:
        opened(data, dump)
    assert caught.value.metadata["path"] == "exec"
    return caught.value


@pytest.mark.parametrize("data", [PLAIN, PACKED, gzip.compress(PLAIN, 1)], ids=["plain", "xz", "gzip"])
def test_it_tells_what_dwarf_and_the_guest_tell(opened: With, data: bytes) -> None:
    truth = of_fixture("linux-5.10")
    truth.image = opened(data)
    truth.image.kernel._btf_in_memory = None  # type: ignore[assignment,method-assign] # it is not asked
    found = cells(truth, {name: CHECKS[name] for name in CHECKS if name not in ("VMCOREINFO", "stacks")})
    assert found.pop("symbols by") == "execfile"
    assert truth.image.info().types == "isf"
    for name, row in found.items():
        right, _, number = row.partition(" of ")
        assert right == number, name
        assert int(number) > 35


def test_symbols_have_kinds_sizes_and_variables_types(opened: With) -> None:
    image = opened(PACKED)
    task, run_queue, code, none = image.symbols(["init_task", "runqueues", "schedule", "nothing"])
    assert {s.source for s in (task, run_queue, code)} == {pb.SYMBOL_SOURCE_EXECFILE}
    assert (task.n_type, run_queue.n_type, code.n_type) == (7, 3, 5)
    assert (task.size, run_queue.size, none.found) == (6400, 2816, False)
    prog = image.kernel.prog
    assert prog["init_task"].type_.type_name() == "struct task_struct"
    assert prog["saved_command_line"].string_().decode().strip() == fixture("linux-5.10/vmcore.kdump").truth["cmdline"]
    bit = prog.type("struct task_struct").member("sched_reset_on_fork")
    assert bit.bit_field_size == 1
    assert prog["PIDTYPE_SID"].value_() == 3


def test_another_kernels_is_refused(opened: With) -> None:
    assert fails(opened, PACKED, "linux-5.15/vmcore.kdump").reason is Reason.EXEC_FOREIGN
    document = json.loads(PLAIN)
    banner = document["symbols"]["linux_banner"]
    text = base64.b64decode(banner["constant_data"])
    banner["constant_data"] = base64.b64encode(text.replace(b"#1", b"#2")).decode()
    assert fails(opened, json.dumps(document).encode()).reason is Reason.EXEC_FOREIGN
    banner["constant_data"] = base64.b64encode(text).decode()
    banner["address"] += 4096
    assert fails(opened, json.dumps(document).encode()).reason is Reason.EXEC_FOREIGN


def test_by_release_where_the_banner_is_not_in_the_dump(opened: With) -> None:
    document = json.loads(PLAIN)
    document["symbols"]["linux_banner"]["address"] = 0xFFFFFFFFFF000000
    assert opened(json.dumps(document).encode()).info().symbols == "execfile"
    banner = document["symbols"]["linux_banner"]
    text = base64.b64decode(banner["constant_data"]).replace(b"Linux version 5.10", b"Linux version 5.11")
    banner["constant_data"] = base64.b64encode(text).decode()
    assert fails(opened, json.dumps(document).encode()).reason is Reason.EXEC_FOREIGN


SMALL: dict[str, Any] = {
    "base_types": {"int": {"size": 4, "signed": True, "kind": "int", "endian": "little"}},
    "enums": {"e": {"size": 4, "base": "int", "constants": {"A": 0, "B": -1}}},
    "user_types": {
        "s": {"size": 16, "kind": "struct", "fields": {"a": {"offset": 0, "type": {"kind": "base", "name": "int"}}}}
    },
    "symbols": {"x": {"address": 7, "type": {"kind": "array", "count": 3, "subtype": {"kind": "base", "name": "void"}}},
    "linux_banner": json.loads(PLAIN)["symbols"]["linux_banner"] | {"type": None}},
}
INT = {"kind": "base", "name": "int"}
NEST: dict[str, Any] = {"kind": "base", "name": "int"}
for _ in range(200):
    NEST = {"kind": "pointer", "subtype": NEST}


def changed(*path: Any, to: Any) -> bytes:
    document = copy.deepcopy(SMALL)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(document).encode()


TYPE = ("user_types", "s", "fields", "a", "type")
WRONG = {
    "no JSON": b"{",
    "deep": b'{"a":' + b"[" * 100_000,
    "a huge number": b'{"a":' + b"9" * 10_000 + b"}",
    "no symbols": changed("symbols", to=[]),
    "no banner": changed("symbols", to={}),
    "a banner that is none": changed("symbols", "linux_banner", "constant_data", to="%%%"),
    "an empty banner": changed("symbols", "linux_banner", "constant_data", to=""),
    "an address below zero": changed("symbols", "x", to={"address": -1}),
    "an address that is none": changed("symbols", "x", to={"address": "1"}),
    "a symbol that is none": changed("symbols", "x", to=7),
    "a type without end": changed(*TYPE, to=NEST),
    "a type that is none": changed(*TYPE, to={"kind": 5}),
    "a type of no kind": changed(*TYPE, to={"kind": "what", "name": "int"}),
    "an unknown base": changed(*TYPE, to={"kind": "base", "name": "long"}),
    "an array below zero": changed(*TYPE, to={"kind": "array", "count": -1, "subtype": INT}),
    "a width": changed(*TYPE, to={"kind": "bitfield", "bit_position": 0, "bit_length": 900, "type": INT}),
    "an offset": changed("user_types", "s", "fields", "a", "offset", to=1 << 40),
    "a true size": changed("user_types", "s", "size", to=True),
    "a kind": changed("user_types", "s", "kind", to="thing"),
    "a name with NUL": changed("user_types", "s", "fields", "a\0b", to={"offset": 0, "type": INT}),
    "a constant": changed("enums", "e", "constants", "A", to=1 << 40),
    "70,000 constants": changed("enums", "e", "constants", to={f"c{i}": i for i in range(70_000)}),
    "packed and torn": PACKED[: len(PACKED) // 2],
    "packed nonsense": PACKED[:12] + bytes(64),
    "gzip and torn": gzip.compress(PLAIN[:1000])[:-12],
}


@pytest.mark.parametrize("how", WRONG)
def test_what_makes_no_sense_is_refused(opened: With, how: str) -> None:
    assert fails(opened, WRONG[how]).reason is Reason.CORRUPT_DATA


def test_a_small_one_is_fine(opened: With) -> None:
    prog = opened(json.dumps(SMALL).encode()).kernel.prog
    assert prog.type("struct s").member("a").type.type_name() == "int"
    assert prog["B"].value_() == -1


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_what_unpacks_without_end(opened: With, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    monkeypatch.setattr(packed, "MOST", 1 << 20)
    e = fails(opened, pack(b"{" + bytes(2 << 20)))
    assert (e.reason, "unpack it" in e.message) == (Reason.CORRUPT_DATA, True)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 1 << 70), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["kind", "name", "subtype", "type", "count", "size", "fields"]), inner),
    ),
    max_leaves=12,
)


PLACES = [("symbols", "x"), ("symbols", "x", "type"), ("base_types", "void"), ("base_types", "int"), ("enums", "e")]
PLACES += [TYPE, TYPE[:-1], TYPE[:-2], TYPE[:-3]]


@given(st.sampled_from(PLACES), VALUES)
@settings(deadline=None, max_examples=25)
def test_arbitrary_values(tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any) -> None:
    target = tmp_path_factory.getbasetemp() / "isf"
    target.write_bytes(changed(*path, to=value))
    with target.open("rb") as file, fixture("linux-5.10/vmcore.kdump").path.open("rb") as core:
        try:
            image = LinuxImage(Files(File(core.fileno(), "vmcore"), File(file.fileno(), "isf")))
            image.symbols(["x", "init_task"])
            for name in ("struct s", "enum e", "int"):
                try:
                    image.kernel.prog.type(name)
                except (LookupError, KvmError):
                    continue
        except KvmError as e:
            assert e.reason is Reason.CORRUPT_DATA


def test_bytes_of_a_real_one_changed(opened: With) -> None:
    rng = random.Random(1)
    small = json.dumps(SMALL).encode()
    for _ in range(60):
        data = bytearray(small)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(1, len(data))] = rng.choice(b'"{}[]:,0129ae \\')
        try:
            opened(bytes(data)).symbols(["linux_banner"])
        except KvmError as e:
            assert e.reason in (Reason.CORRUPT_DATA, Reason.EXEC_FOREIGN)


PACKERS = {"plain": bytes, "xz": partial(lzma.compress, preset=0), "gzip": partial(gzip.compress, compresslevel=1)}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_btf_of_a_stripped_vmlinux(opened: With, pack: Any) -> None:
    dump = "qemu/vmcore.kdump"
    own = blob(dump)
    build_id = opened(own, dump).kernel.info.build_id
    elf = vmlinux(build_id, None, [(".BTF", 1, 2, 0, own)])
    image = opened(pack(elf), dump)
    assert image.kernel._types.btf.find("task_struct") is None or image.info().types == "btf"
    assert bytes(image.kernel.execfile.btf) == own  # type: ignore[union-attr]
    assert image.info().types == "btf"
    assert image.symbols(["init_task"])[0].source == pb.SYMBOL_SOURCE_KALLSYMS
    foreign = vmlinux(build_id[::-1], None, [(".BTF", 1, 2, 0, own)])
    assert fails(opened, pack(foreign), dump).reason is Reason.EXEC_FOREIGN
    torn = opened(pack(vmlinux(build_id, None, [(".BTF", 1, 2, 0, own[:-8])])), dump)
    with pytest.raises(KvmError) as caught:
        torn.kernel.need_types()
    assert caught.value.reason is Reason.CORRUPT_DATA
    assert opened(pack(own), dump).info().types == "btf"  # raw BTF, too
    assert struct.unpack_from("<H", own)[0] == 0xEB9F
