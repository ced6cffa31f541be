"""kvm_nlist(3)."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from libkvm.compat.constants import N_DATA, N_EXT
from libkvm.compat.kd import Kvm, Resolver, open_handle
from libkvm.errors import KvmError, Reason
from libkvm.records import Symbol

_PER_CPU = ("__per_cpu_start", "__per_cpu_end")  # Linux include/asm-generic/vmlinux.lds.h: PERCPU_SECTION


@dataclass(slots=True)
class Nlist:
    """An entry of a name list: struct nlist of nlist(3).

    :ivar n_name: the name; None or empty ends the list.
    :ivar n_type: N_ABS, N_TEXT, N_DATA or N_BSS, or-ed with N_EXT; N_UNDF if not found.
    :ivar n_value: the address; 0 if not found.
    """

    n_name: str | None = None
    n_type: int = 0
    n_other: int = 0
    n_desc: int = 0
    n_value: int = 0


def kvm_nlist(kd: Kvm | None, nl: Sequence[Nlist]) -> int:
    """Look names up and fill their entries: kvm_nlist(3).

    Every entry is zeroed first; a name occurring twice is filled twice. A name that is not found as given is
    tried without one leading underscore, which a.out compilers put there.

    Once :func:`libkvm.kvm_dpcpu_setcpu` has selected a CPU, a per-CPU variable's value is the address of that CPU's
    own.

    :param nl: the entries, ended by one without a name or by the end of the list.
    :return: how many were not found; -1 on failure, with the text ``bad namelist``, or for a FreeBSD dump of another
        architecture ``kvm_nlist of non-native vmcore``: :func:`kvm_nlist2` is for that.
    """
    if kd is not None and kd.foreign and not kd.kernel.closed:
        for entry in _entries(nl):
            _clear(entry)
        kd.hard("kvm_nlist of non-native vmcore", errno.EINVAL)
        return -1
    return kvm_nlist2(kd, nl)


def kvm_nlist2(kd: Kvm | None, nl: Sequence[Nlist]) -> int:
    """Look names up and fill their entries: FreeBSD's kvm_nlist2(3).

    The same as :func:`kvm_nlist`, whose ``n_value`` has 64 bits already; but it asks the resolver of
    :func:`libkvm.kvm_open2` for an image's symbols where :func:`kvm_nlist` may not.
    """
    entries = list(_entries(nl))
    for entry in entries:
        _clear(entry)
    if (kd := open_handle(kd)) is None:
        return -1
    if kd.no_files:
        kd.soft("bad namelist", errno.EINVAL)
        return -1
    if kd.foreign and kd.resolver is not None:
        return _resolved(kd.resolver, entries)
    names = [str(entry.n_name) for entry in entries]
    offset = kd.cpu_offset
    try:
        shorter = (name[1:] for name in names if name.startswith("_"))
        symbols = kd.kernel.symbols(itertools.chain(names, shorter, () if offset is None else _PER_CPU))
    except KvmError as failure:
        if failure.reason is Reason.NO_SYMBOLS and kd.resolver is not None:
            return _resolved(kd.resolver, entries)
        kd.soft("bad namelist", failure.errno)
        return -1
    missing = 0
    for entry, name in zip(entries, names, strict=True):
        symbol = symbols[name] or (symbols[name[1:]] if name.startswith("_") else None)
        if symbol is None:
            missing += 1
            continue
        entry.n_type, entry.n_value = symbol.n_type, symbol.value
        if offset is not None and _per_cpu(symbol, symbols):
            entry.n_value = (symbol.value + offset) % 2**64
    return missing


def _resolved(resolver: Resolver, entries: Sequence[Nlist]) -> int:
    """Ask the caller's resolver, whose symbols are data to libkvm; answer how many it did not find."""
    missing = 0
    for entry in entries:
        value = resolver(str(entry.n_name))
        if value is None:
            missing += 1
        else:
            entry.n_type, entry.n_value = N_DATA | N_EXT, value % 2**64
    return missing


def _clear(entry: Nlist) -> None:
    entry.n_type = entry.n_other = entry.n_desc = entry.n_value = 0


def _per_cpu(symbol: Symbol, symbols: Mapping[str, Symbol | None]) -> bool:
    """Tell whether a symbol of the kernel's own is a per-CPU variable: it lies in their template's range."""
    start, end = (symbols[name] for name in _PER_CPU)
    if start is None or end is None or symbol.module:
        return False
    return start.value <= symbol.value < end.value


def _entries(nl: Sequence[Nlist]) -> Iterator[Nlist]:
    for entry in nl:
        if not isinstance(entry.n_name, str | None):
            raise TypeError(f"n_name is a str or None, not {entry.n_name!r}")
        if not entry.n_name:
            return
        yield entry
