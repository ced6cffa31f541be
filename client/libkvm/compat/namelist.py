"""kvm_nlist(3)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from libkvm.compat.kd import Kvm, open_handle
from libkvm.errors import KvmError


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

    :param nl: the entries, ended by one without a name or by the end of the list.
    :return: how many were not found; -1 on failure, with the text ``bad namelist``.
    """
    entries = list(_entries(nl))
    for entry in entries:
        entry.n_type = entry.n_other = entry.n_desc = entry.n_value = 0
    if (kd := open_handle(kd)) is None:
        return -1
    names = [str(entry.n_name) for entry in entries]
    try:
        symbols = kd.kernel.symbols(itertools.chain(names, (name[1:] for name in names if name.startswith("_"))))
    except KvmError as failure:
        kd.soft("bad namelist", failure.errno)
        return -1
    missing = 0
    for entry, name in zip(entries, names, strict=True):
        symbol = symbols[name] or (symbols[name[1:]] if name.startswith("_") else None)
        if symbol is None:
            missing += 1
        else:
            entry.n_type, entry.n_value = symbol.n_type, symbol.value
    return missing


def _entries(nl: Sequence[Nlist]) -> Iterator[Nlist]:
    for entry in nl:
        if not isinstance(entry.n_name, str | None):
            raise TypeError(f"n_name is a str or None, not {entry.n_name!r}")
        if not entry.n_name:
            return
        yield entry
