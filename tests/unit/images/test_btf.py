"""BTF and the drgn types made of it."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from drgn import Architecture, Object, Platform, Program, Qualifiers, TypeKind, offsetof, sizeof

from btf import Builder
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.btf import Btf, Kind
from kvmd.images.linux.types import Types


def program(builder: Builder) -> Program:
    prog = Program(Platform(Architecture.X86_64))
    prog.register_type_finder("test", Types(prog, Btf(builder.bytes())).find, enable_index=0)
    return prog


def corrupt(data: bytes) -> None:
    with pytest.raises(KvmError) as caught:
        Btf(data)
    assert caught.value.reason is Reason.CORRUPT_DATA


def fails(builder: Builder, name: str) -> KvmError:
    with pytest.raises(KvmError) as caught:
        program(builder).type(name)
    assert caught.value.reason is Reason.CORRUPT_DATA
    return caught.value


def test_integers_and_floats() -> None:
    b = Builder()
    b.integer("int", 4, 1)
    b.integer("long unsigned int", 8)
    b.integer("_Bool", 1, 4)
    b.add(8, "s128", value=b.integer("__int128", 16, 1))
    b.add(16, "double", 8)
    prog = program(b)
    assert prog.type("int").is_signed
    assert not prog.type("unsigned long").is_signed
    assert prog.type("_Bool").kind is TypeKind.BOOL
    assert sizeof(prog.type("s128")) == 16
    assert prog.type("double").kind is TypeKind.FLOAT


def test_structs_with_bit_fields_and_anonymous_members() -> None:
    b = Builder()
    u32 = b.integer("unsigned int", 4)
    inner = b.compound("", 4, [("low", u32, 0), ("other", u32, 0)], kind=5)
    b.compound("outer", 12, [("", inner, 0), ("three", u32, 3 << 24 | 32), ("five", u32, 5 << 24 | 35)], flag=1)
    prog = program(b)
    outer = prog.type("struct outer")
    assert offsetof(outer, "low") == 0
    data = struct.pack("<III", 7, 0b10101_110, 0)
    value = Object.from_bytes_(prog, outer, data)
    assert (value.low.value_(), value.three.value_(), value.five.value_()) == (7, 6, 21)


def test_cyclic_graphs_qualifiers_and_tags() -> None:
    b = Builder()
    # struct node { struct node *next; const volatile node_t *restrict q; } with a type tag on the way
    node = 5
    b.add(2, value=node)  # 1: struct node *
    b.add(10, value=3)  # 2: const 3
    b.add(9, value=4)  # 3: volatile 4
    b.add(8, "node_t", value=6)  # 4: typedef of a tag
    assert b.compound("node", 16, [("next", 1, 0), ("q", 7, 64)]) == node
    b.add(18, "tag", value=node)  # 6
    b.add(11, value=8)  # 7: restrict 8
    b.add(2, value=2)  # 8: pointer to 2
    found = program(b).type("struct node")
    assert found.member("next").type.type.member("next").type.type.tag == "node"
    pointer = found.member("q").type
    assert pointer.qualifiers is Qualifiers.RESTRICT
    assert pointer.type.qualifiers == Qualifiers.CONST | Qualifiers.VOLATILE
    assert pointer.type.type.tag == "node"


def test_arrays_enums_functions_and_declarations() -> None:
    b = Builder()
    i32 = b.integer("int", 4, 1)
    array = b.add(3, extra=(i32, i32, 6))
    b.enum("colour", [("RED", -1), ("BLUE", 2)], flag=1)
    b.enum("wide", [("HUGE", 1 << 40)], wide=True)
    forward = b.add(7, "later")
    proto = b.add(13, value=i32, extra=(b.name("x"), i32, 0, 0), vlen=2)
    pointer = b.add(2, value=proto)
    unknown = b.add(7, "never", flag=1)
    pointers = [b.add(2, value=forward), b.add(2, value=unknown)]
    b.compound("s", 64, [("a", array, 0), ("f", pointer, 192), ("p", pointers[0], 256), ("q", pointers[1], 320)])
    b.compound("later", 4, [("i", i32, 0)])
    b.add(6, "incomplete", 4)
    prog = program(b)
    s = prog.type("struct s")
    assert s.member("a").type.length == 6
    assert dict(prog.type("enum colour").enumerators) == {"RED": -1, "BLUE": 2}
    assert dict(prog.type("enum wide").enumerators) == {"HUGE": 1 << 40}
    assert s.member("p").type.type.is_complete()
    assert s.member("q").type.type.kind is TypeKind.UNION
    assert not s.member("q").type.type.is_complete()
    assert not prog.type("enum incomplete").is_complete()
    function = s.member("f").type.type
    assert function.is_variadic
    assert [p.name for p in function.parameters] == ["x"]
    assert Btf(b.bytes()).constant("HUGE") == 4
    with pytest.raises(LookupError):
        prog.type("struct nowhere")


def test_types_that_refer_to_themselves() -> None:
    for kind in (8, 9, 10, 11, 2, 18):
        b = Builder()
        b.add(kind, "loop" if kind in (8, 18) else "", value=1)
        b.add(8, "entry", value=1)
        assert "without end" in fails(b, "entry").message
    b = Builder()
    b.add(3, extra=(1, 1, 2))
    b.add(8, "entry", value=1)
    fails(b, "entry")


def test_no_types_at_all() -> None:
    b = Builder()
    assert Btf(b.bytes()).find("int", Kind.INT) is None
    assert Btf(b.bytes()).constant("int") is None
    assert list(Btf(b.bytes()).names()) == []


def test_a_struct_in_itself() -> None:
    b = Builder()
    b.compound("s", 8, [("", 1, 0)])
    assert "holds itself" in fails(b, "struct s").message
    b = Builder()
    b.compound("s", 8, [("", 2, 0)])
    b.compound("", 8, [("", 3, 0)])
    b.add(8, "alias", value=1)
    assert "holds itself" in fails(b, "struct s").message
    b = Builder()
    b.compound("s", 8, [("", 2, 0)])
    b.add(7, "s")  # its declaration, which is the same
    assert "holds itself" in fails(b, "struct s").message
    for kind, more in ((8, ()), (10, ()), (12, ()), (14, (1,)), (17, (0,)), (18, ())):
        b = Builder()
        b.compound("s", 8, [("", 2, 0)])
        b.add(kind, "x", 1, more)
        assert "holds itself" in fails(b, "struct s").message


@pytest.mark.parametrize(("kind", "size"), [(1, 3), (1, 0), (16, 7)])
def test_senseless_sizes(kind: int, size: int) -> None:
    b = Builder()
    b.add(kind, "t", size, (0,) if kind == 1 else ())
    b.add(8, "entry", value=1)
    fails(b, "entry")


def test_ids_strings_and_kinds_out_of_range() -> None:
    b = Builder()
    b.add(8, "entry", value=99)
    fails(b, "entry")
    b = Builder()
    b.add(25, "odd", value=0)
    b.add(8, "entry", value=1)
    fails(b, "entry")
    b = Builder()
    b.add(15, "section", value=0)
    b.add(8, "entry", value=1)
    fails(b, "entry")
    b = Builder()
    b.integer("int", 4, 1)
    b.types[0] = struct.pack("<I", 1 << 30) + b.types[0][4:]
    blob = Btf(b.bytes())
    with pytest.raises(KvmError, match="string offset"):
        blob.record(1)


@pytest.mark.parametrize("field", [0, 2, 4, 8, 12, 16, 20])
@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x7FFFFFFF])
def test_headers_that_lie(field: int, value: int) -> None:
    b = Builder()
    b.integer("int", 4, 1)
    data = bytearray(b.bytes())
    width = {0: 2, 2: 1}.get(field, 4)
    data[field : field + width] = value.to_bytes(4, "little")[:width]
    corrupt(bytes(data))


def test_blobs_that_are_cut() -> None:
    b = Builder()
    b.compound("s", 4, [("x", 0, 0)])
    data = b.bytes()
    for at in range(len(data)):
        corrupt(data[:at])
    corrupt(data[:24] + b"\0" * (len(data) - 25) + b"x")


def test_a_real_kernels_types(debian: Any) -> None:
    types = debian.image.kernel._types
    assert len(types.btf) > 95_000
    prog = debian.image.kernel.prog
    assert sizeof(prog.type("struct task_struct")) == 9728
    assert prog.type("pid_t").kind is TypeKind.TYPEDEF
    assert types.btf.find("runqueues", Kind.VAR)
    assert prog["PIDTYPE_PGID"].value_() == 2
    assert prog.type("struct page").has_member("compound_head")
    with pytest.raises(KeyError):
        prog["no_such_thing"]


def test_every_type_of_a_real_kernel_can_be_built(qemu: Any) -> None:
    types = qemu.image.kernel._types
    for type_id in range(len(types.btf)):
        if types.btf.record(type_id).kind is not Kind.DATASEC:
            types.type(type_id)
    for type_id in range(0, len(types.btf), 7):
        if types.btf.record(type_id).kind in (Kind.STRUCT, Kind.UNION):
            assert all(member.type is not None for member in types.type(type_id).members)


def test_the_index_is_quick(debian: Any) -> None:
    kernel = debian.image.kernel
    start, stop = kernel.address("__start_BTF"), kernel.address("__stop_BTF")
    data = b"".join(kernel.memory.kernel(a, min(1 << 20, stop - a)) for a in range(start, stop, 1 << 20))
    began = time.process_time()
    Btf(data)
    assert time.process_time() - began < 0.5


def test_a_bit_field_wider_than_its_type() -> None:
    b = Builder()
    b.compound("s", 8, [("x", b.integer("int", 4, 1), 33 << 24)], flag=1)
    members = program(b).type("struct s").members
    with pytest.raises(KvmError, match="33 bits"):
        members[0].type  # noqa: B018 - resolved when it is looked at
