"""Types of modules: against bpftool's reading of a real dump's, and split BTF made by hand, right and wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from drgn import Architecture, Platform, Program, TypeKind, offsetof, sizeof
from hypothesis import given, settings
from hypothesis import strategies as st

from btf import Builder
from images import DATA
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.btf import Btf, Kind
from kvmd.images.linux.modtypes import ModuleTypes
from kvmd.images.linux.types import Types
from unit.images.conftest import Opened

NAME = "debian-6.1-panic"
TRUTH: dict[str, Any] = json.loads((DATA / NAME / "module-types.json").read_text())


@pytest.mark.parametrize("module", TRUTH)
def test_the_structs_of_real_modules(module: str, debian: Opened) -> None:
    prog = debian.image.kernel.prog
    for name, truth in TRUTH[module].items():
        if name == "constants":
            for constant, value in truth.items():
                assert prog.constant(constant).value_() == value
            continue
        found = prog.type(name)
        assert sizeof(found) == truth["size"], name
        assert [[m.name or "", m.bit_offset] for m in found.members] == truth["members"], name


def test_members_go_on_into_the_kernels_own_types(debian: Opened) -> None:
    prog = debian.image.kernel.prog
    device = prog.type("struct virtio_pci_device").member("vdev").type.member("dev").type
    kernels = prog.type("struct device")
    assert (device.tag, device.size) == ("device", kernels.size)
    assert offsetof(device, "kobj") == offsetof(kernels, "kobj")


def base() -> Builder:
    b = Builder()
    b.integer("int", 4, 1)
    b.compound("shared", 4, [("x", 1, 0)])
    return b


def found(kernel: Builder, *modules: bytes) -> Program:
    prog = Program(Platform(Architecture.X86_64))
    types = Types(prog, Btf(kernel.bytes()))
    prog.register_type_finder("kernel", types.find, enable_index=0)
    blobs = [lambda data=data: data for data in modules]
    prog.register_type_finder("modules", ModuleTypes(prog, types, lambda: blobs).find, enable_index=1)
    return prog


def test_ids_and_names_go_on_where_the_kernels_end() -> None:
    kernel = base()
    one, two = Builder(kernel), Builder(kernel)
    assert one.compound("mine", 8, [("a", 1, 0), ("b", 2, 32)]) == 3
    forward = two.add(7, "shared")
    two.compound("mine", 16, [("other", 1, 0)])
    pointer = two.add(2, value=forward)
    two.compound("theirs", 8, [("p", pointer, 0)])
    # A name that the kernel's strings have already, as the linker's deduplication leaves it.
    shared_name = kernel.strings.index(b"x\0")
    two.types.append(struct.pack("<III", shared_name, 4 << 24, 0))
    prog = found(kernel, one.bytes(), two.bytes())
    assert sizeof(prog.type("struct mine")) == 8
    assert prog.type("struct mine").member("b").type.tag == "shared"
    assert prog.type("struct theirs").member("p").type.type.is_complete()
    assert prog.type("struct x").kind is TypeKind.STRUCT
    with pytest.raises(LookupError):
        prog.type("struct nowhere")


def test_one_broken_module_hides_no_other() -> None:
    kernel = base()
    good = Builder(kernel)
    good.compound("mine", 8, [("a", 1, 0)])

    def unreadable() -> bytes:
        raise KvmError(Reason.EXCLUDED, "left out")

    prog = Program(Platform(Architecture.X86_64))
    types = Types(prog, Btf(kernel.bytes()))
    blobs = [unreadable, lambda: b"mine\0", lambda: good.bytes()[:-1] + b"x", good.bytes]
    modules = ModuleTypes(prog, types, lambda: blobs)
    prog.register_type_finder("modules", modules.find, enable_index=0)
    assert sizeof(prog.type("struct mine")) == 8


def test_a_list_that_fails_gives_no_types_and_is_walked_once() -> None:
    walked = []

    def blobs() -> Iterator[Callable[[], bytes]]:
        walked.append(1)
        yield lambda: b""
        raise KvmError(Reason.CORRUPT_DATA, "a loop")

    prog = Program(Platform(Architecture.X86_64))
    prog.register_type_finder(
        "modules", ModuleTypes(prog, Types(prog, Btf(base().bytes())), blobs).find, enable_index=0
    )
    for _ in range(2):
        with pytest.raises(LookupError):
            prog.type("struct mine")
    assert walked == [1]


def test_ids_and_strings_past_the_end() -> None:
    kernel = base()
    module = Builder(kernel)
    module.add(8, "entry", value=77)
    split = Btf(module.bytes(), Btf(kernel.bytes()))
    with pytest.raises(KvmError, match="type id 77"):
        split.record(77)
    with pytest.raises(KvmError, match="string offset"):
        split.string(split.string_end)
    assert (split.record(1).name, split.record(3).name, len(split)) == ("int", "entry", 4)
    assert Btf(Builder(kernel).bytes(), Btf(kernel.bytes())).find("int", Kind.INT) == 1


@given(st.binary(max_size=300), st.booleans())
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes(data: bytes, headed: bool) -> None:
    kernel = base()
    if headed:
        module = Builder(kernel)
        module.types, module.strings = [data[: len(data) // 8 * 4]], bytearray(data[len(data) // 8 * 4 :] + b"\0")
        data = module.bytes()
    try:
        split = Btf(data, Btf(kernel.bytes()))
        for type_id in range(len(split)):
            split.record(type_id)
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
