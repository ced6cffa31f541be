"""BTF's types as drgn's: a finder that builds what is asked for, members lazily.

Pointers make the type graph cyclic, so that members are resolved when they are looked at. Chains that are followed at
once (pointers, qualifiers, typedefs, arrays) are bounded, and so is nesting of anonymous members, which drgn would
follow without end.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from drgn import (
    Object,
    Program,
    Qualifiers,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeMember,
    TypeParameter,
    sizeof,
)

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.btf import Btf, Kind, Record

_DEPTH = 64
_KINDS = {
    TypeKind.STRUCT: (Kind.STRUCT,),
    TypeKind.UNION: (Kind.UNION,),
    TypeKind.ENUM: (Kind.ENUM, Kind.ENUM64),
    TypeKind.TYPEDEF: (Kind.TYPEDEF,),
    TypeKind.INT: (Kind.INT,),
    TypeKind.BOOL: (Kind.INT,),
    TypeKind.FLOAT: (Kind.FLOAT,),
}
_QUALIFIERS = {
    Kind.VOLATILE: Qualifiers.VOLATILE,
    Kind.CONST: Qualifiers.CONST,
    Kind.RESTRICT: Qualifiers.RESTRICT,
}
_THROUGH = (Kind.TYPE_TAG, Kind.DECL_TAG)
_OF_ONE = (*_THROUGH, Kind.TYPEDEF, Kind.VAR, Kind.FUNC)
_INT_SIZES = (1, 2, 4, 8, 16)


def _corrupt(message: str) -> KvmError:
    return error(Reason.CORRUPT_DATA, f"the kernel's BTF makes no sense: {message}")


class Types:
    """The types of one BTF blob in one Program.

    :param base: the types that a module's go on from; what is one type there is one type here.
    """

    def __init__(self, prog: Program, btf: Btf, base: Types | None = None) -> None:
        self._prog = prog
        self.btf = btf
        self._base = base
        self._known: dict[int, Type] = {}
        self._builders: dict[Kind, Callable[[Record, int], Type]] = {
            Kind.VOID: lambda record, depth: prog.void_type(),
            Kind.INT: self._int,
            Kind.FLOAT: self._float,
            Kind.PTR: lambda record, depth: prog.pointer_type(self.type(record.value, depth)),
            Kind.ARRAY: self._array,
            Kind.STRUCT: self._compound,
            Kind.UNION: self._compound,
            Kind.ENUM: self._enum,
            Kind.ENUM64: self._enum,
            Kind.FWD: self._forward,
            Kind.TYPEDEF: lambda record, depth: prog.typedef_type(record.name, self.type(record.value, depth)),
            Kind.FUNC: lambda record, depth: self.type(record.value, depth),
            Kind.VAR: lambda record, depth: self.type(record.value, depth),
            Kind.FUNC_PROTO: self._function,
        }

    def constant(self, name: str) -> Object | None:
        """Find an enumerator, as an object of its enumeration."""
        type_id = self.btf.constant(name)
        if type_id is None:
            return None
        values = dict(self.btf.enumerators(self.btf.record(type_id)))
        return Object(self._prog, self.type(type_id), values[name])

    def find(self, _prog: Program, kinds: Container[TypeKind], name: str, _filename: str | None) -> Type | None:
        """Find a type by name; the signature is that of drgn's type finders."""
        for kind, wanted in _KINDS.items():
            if kind in kinds and (type_id := self.btf.find(name, *wanted)) is not None:
                found = self.type(type_id)
                if found.kind is kind:
                    return found
        return None

    def type(self, type_id: int, depth: int = 0) -> Type:
        """Build a type by its id.

        :raises KvmError: CORRUPT_DATA if BTF contradicts itself.
        """
        if self._base and type_id < len(self._base.btf):
            return self._base.type(type_id, depth)
        known = self._known.get(type_id)
        if known is not None:
            return known
        if depth > _DEPTH:
            raise _corrupt("types refer to each other without end")
        try:
            built = self._build(self.btf.record(type_id), depth + 1)
        except (ValueError, TypeError, OverflowError) as e:  # what drgn refuses
            raise _corrupt(str(e)) from e
        self._known[type_id] = built
        return built

    def _build(self, record: Record, depth: int) -> Type:
        if record.kind in _QUALIFIERS:
            inner = self.type(record.value, depth)
            return inner.qualified(inner.qualifiers | _QUALIFIERS[record.kind])
        if record.kind in _THROUGH:
            return self.type(record.value, depth)
        if record.kind not in self._builders:
            raise _corrupt(f"{record.kind.name} is no type")
        return self._builders[record.kind](record, depth)

    def _int(self, record: Record, _depth: int) -> Type:
        encoding = self.btf.word(record) >> 24
        if record.value not in _INT_SIZES:
            raise _corrupt(f"an integer of {record.value} bytes")
        if encoding & 4:
            return self._prog.bool_type(record.name, record.value)
        return self._prog.int_type(record.name, record.value, bool(encoding & 1))

    def _float(self, record: Record, _depth: int) -> Type:
        if record.value not in (2, 4, 8, 12, 16):
            raise _corrupt(f"a floating-point number of {record.value} bytes")
        return self._prog.float_type(record.name, record.value)

    def _array(self, record: Record, depth: int) -> Type:
        element = self.type(self.btf.word(record), depth)
        return self._prog.array_type(element, self.btf.word(record, 2))

    def _compound(self, record: Record, _depth: int) -> Type:
        self._check_nesting(record)
        members = [TypeMember(self._member(m.type, m.bits), m.name or None, m.offset) for m in self.btf.members(record)]
        make = self._prog.struct_type if record.kind is Kind.STRUCT else self._prog.union_type
        return make(record.name or None, record.value, members)

    def _member(self, type_id: int, bits: int) -> Callable[[], Object | Type]:
        """Resolve a member when drgn asks for it."""

        def resolve() -> Object | Type:
            member = self.type(type_id)
            try:
                if bits:
                    return Object(self._prog, member, bit_field_size=bits)
                sizeof(member)
            except (ValueError, TypeError, OverflowError) as e:
                raise _corrupt(f"a bit field of {bits} bits" if bits else "a member without a size") from e
            return member

        return resolve

    def _check_nesting(self, record: Record) -> None:
        """Refuse a struct that holds itself as an anonymous member."""
        seen, todo = {record.id}, [record]
        while todo:
            for member in self.btf.members(todo.pop()):
                if member.name:
                    continue
                inner = self._resolve(member.type)
                if inner.kind in (Kind.STRUCT, Kind.UNION):
                    if inner.id == record.id or len(seen) > 1 << 12:
                        raise _corrupt("a struct holds itself")
                    if inner.id not in seen:
                        seen.add(inner.id)
                        todo.append(inner)

    def _resolve(self, type_id: int) -> Record:
        for _ in range(_DEPTH):
            record = self.btf.record(type_id)
            definition = self._definition(record)
            if definition is not None:
                type_id = definition
            elif record.kind in _QUALIFIERS or record.kind in _OF_ONE:
                type_id = record.value
            else:
                return record
        raise _corrupt("types refer to each other without end")

    def _enum(self, record: Record, _depth: int) -> Type:
        if not record.vlen:
            return self._prog.enum_type(record.name or None)
        if record.value not in (1, 2, 4, 8):
            raise _corrupt(f"an enumeration of {record.value} bytes")
        integer = self._prog.int_type("int" if record.flag else "unsigned int", record.value, record.flag)
        values = [TypeEnumerator(name, value) for name, value in self.btf.enumerators(record)]
        return self._prog.enum_type(record.name or None, integer, values)

    def _definition(self, record: Record) -> int | None:
        """The id of what a declaration declares, if BTF has it."""
        if record.kind is not Kind.FWD:
            return None
        return self.btf.find(record.name, Kind.UNION if record.flag else Kind.STRUCT)

    def _forward(self, record: Record, depth: int) -> Type:
        """A declaration is its definition, where BTF has one."""
        definition = self._definition(record)
        if definition is not None:
            return self.type(definition, depth)
        make = self._prog.union_type if record.flag else self._prog.struct_type
        return make(record.name or None)

    def _function(self, record: Record, depth: int) -> Type:
        parameters = list(self.btf.parameters(record))
        variadic = bool(parameters) and parameters[-1] == ("", 0)
        listed = [TypeParameter(self._parameter(i), name or None) for name, i in parameters[: -1 if variadic else None]]
        return self._prog.function_type(self.type(record.value, depth), listed, variadic)

    def _parameter(self, type_id: int) -> Callable[[], Type]:
        return lambda: self.type(type_id)
