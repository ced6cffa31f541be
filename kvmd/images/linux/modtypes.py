"""Types of loaded modules: each has BTF of its own, which goes on from the kernel's.

Source: Linux kernel/bpf/btf.c (struct btf_module and the list ``btf_modules``, since 5.11); /sys/kernel/btf/MODULE
holds the same bytes. Since 6.11 a module may bring the base it was built with; what is read here is already related to
the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from drgn import Object, Program, Type, TypeKindSet
from drgn.helpers.linux.list import list_for_each_entry

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.btf import MAX_SIZE, Btf
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.memory import Read, in_chunks
from kvmd.images.linux.types import Types

_MAX_MODULES = 1 << 12
_MAX_EACH = 16 << 20

Blob = Callable[[], bytes]


def blobs_in_memory(prog: Program, head: int, read: Read) -> Iterator[Blob]:
    """Walk the list of modules' BTF.

    :param head: the address of ``btf_modules``.
    :param read: reads kernel memory exactly, at most a chunk.
    """
    listed = Object(prog, "struct list_head", address=head).address_of_()
    for module in islice(list_for_each_entry("struct btf_module", listed, "list"), _MAX_MODULES):
        size = min(module.btf.data_size.value_(), _MAX_EACH)
        yield partial(in_chunks, read, module.btf.data.value_(), size)


class ModuleTypes:
    """Finds the types of modules, the first of a name; a module whose BTF can't be read or understood is left out.

    :param base: the kernel's types.
    :param blobs: gives each module's BTF; asked once, when the first name is not the kernel's.
    """

    def __init__(self, prog: Program, base: Types, blobs: Callable[[], Iterable[Blob]]) -> None:
        self._prog = prog
        self._base = base
        self._blobs: Callable[[], Iterable[Blob]] | None = blobs
        self._data: list[bytes] = []
        self._parsed: dict[int, Types | None] = {}

    def _load(self, blobs: Callable[[], Iterable[Blob]]) -> None:
        self._blobs = None  # at once: the walk over the modules may itself ask for a type that the kernel doesn't have
        size = 0
        with suppress(KvmError), guarded("the list of modules' BTF", Reason.CORRUPT_DATA):
            for blob in blobs():
                with suppress(KvmError):
                    self._data.append(blob())
                    size += len(self._data[-1])
                if size > MAX_SIZE:
                    break

    def find(self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None) -> Type | None:
        """Find a type that the kernel proper doesn't have; the signature is that of drgn's type finders."""
        return next(filter(None, (types.find(prog, kinds, name, filename) for types in self._with(name))), None)

    def constant(self, name: str) -> Object | None:
        """Find an enumerator."""
        return next((found for types in self._with(name) if (found := types.constant(name)) is not None), None)

    def _with(self, name: str) -> Iterator[Types]:
        """Give those that may know a name; most need no parsing: neither their strings nor the kernel's have it."""
        if self._blobs is not None:
            self._load(self._blobs)
        text = name.encode("utf-8", "replace")
        everywhere = any(self._base.btf.string_offsets(text))
        for index, data in enumerate(self._data):
            if everywhere or text + b"\0" in data:
                if index not in self._parsed:
                    self._parsed[index] = self._parse(data)
                if (types := self._parsed[index]) is not None:
                    yield types

    def _parse(self, data: bytes) -> Types | None:
        try:
            return Types(self._prog, Btf(data, self._base.btf), self._base)
        except KvmError:
            return None
