"""What code lies where: the kernel's and its modules' functions, and the tables that tell how they use the stack.

Source: Linux include/linux/module.h (``mem[]`` by type since 6.4, ``core_layout`` and ``init_layout`` since 4.5),
arch/x86/include/asm/module.h (struct mod_arch_specific), include/asm-generic/vmlinux.lds.h (section bounds).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from drgn import Object
from drgn.helpers.linux.module import for_each_module

from kvmd.errors import KvmError
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.modsyms import symbols_of
from kvmd.images.linux.orc import Orc, Row, Table
from kvmd.images.linux.symbols import N_EXT, N_TEXT, rank

_MAX_MODULES = 1 << 12
_MAX_SYMBOLS = 1 << 18  # of modules, that one look at the stacks may read
_LAYOUTS = {
    "core": ("mem.0.base", "core_layout.base"),  # MOD_TEXT
    "core_size": ("mem.0.size", "core_layout.size"),
    "init": ("mem.4.base", "init_layout.base"),  # MOD_INIT_TEXT
    "init_size": ("mem.4.size", "init_layout.size"),
    "rows": ("arch.num_orcs",),
    "starts": ("arch.orc_unwind_ip",),
    "orc": ("arch.orc_unwind",),
}


class Module:
    """A loaded module's code."""

    def __init__(self, module: Object, fields: dict[str, Any]) -> None:
        self.name = module.name.string_().decode("utf-8", "replace")
        self.object = module
        pairs = ((fields[part], fields[f"{part}_size"]) for part in ("core", "init"))
        self.code = [range(start, start + size) for start, size in pairs if start and size]
        self.table = Table(fields["starts"], fields["orc"], fields["rows"]) if fields["rows"] else None
        self.symbols: list[tuple[int, str]] | None = None


class Code:
    """The code of one kernel at one moment; of the running kernel a new one is made for each look.

    :raises KvmError: NO_SYMBOLS.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._left = _MAX_SYMBOLS
        text = kernel.address("_stext"), kernel.address("_etext")
        bounds = [(found.value if (found := kernel.builtin(name)) else 0) for name in ("_sinittext", "_einittext")]
        self._text = (range(*text), range(*bounds))

    @cached_property
    def orc(self) -> tuple[Table, Orc]:
        """The kernel's own table, and what reads it.

        :raises KvmError: NO_TYPES for kernels without ORC, NO_SYMBOLS.
        """
        kernel = self._kernel
        starts, stop = kernel.address("__start_orc_unwind_ip"), kernel.address("__stop_orc_unwind_ip")
        table = Table(starts, kernel.address("__start_orc_unwind"), max(stop - starts, 0) // 4)
        return table, Orc(kernel.prog, kernel.memory.kernel, table, kernel.address("schedule"))

    @cached_property
    def modules(self) -> list[Module]:
        """The loaded modules; those that can't be read are left out."""
        if self._kernel.builtin("modules") is None:
            return []
        fields = Fields(self._kernel.prog, self._kernel.memory.kernel, "struct module", _LAYOUTS)
        return list(self._modules(fields))

    def _modules(self, fields: Fields) -> Iterator[Module]:
        with self._kernel.reading("the list of modules"):
            for module in islice(for_each_module(self._kernel.prog), _MAX_MODULES):
                yield Module(module, fields(module.value_()))

    def module(self, address: int) -> Module | None:
        """The module whose code lies at an address.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds the list of modules.
        """
        return next((m for m in self.modules if any(address in part for part in m.code)), None)

    def row(self, address: int) -> Row | None:
        """How the instruction at an address uses the stack; None where nothing tells.

        :raises KvmError: the fault of a page that holds the table or the list of modules.
        """
        table, orc = self.orc
        if any(address in part for part in self._text):
            return orc.find(table, address)
        module = self.module(address)
        return orc.find(module.table, address) if module and module.table else None

    def name(self, address: int) -> tuple[str, int, str]:
        """The function at an address: its name, address and module; an empty name if no table has one."""
        if any(address in part for part in self._text):
            found = min(self._kernel.prog.symbols(address), key=rank, default=None)
            return (found.name, found.address, "") if found else ("", 0, "")
        module = self.module(address)
        if module is None:
            return "", 0, ""
        if module.symbols is None:
            module.symbols = self._symbols(module)
        index = bisect_right(module.symbols, (address, "\U0010ffff")) - 1
        start, name = module.symbols[index] if index >= 0 else (0, "")
        return name, start, module.name

    def _symbols(self, module: Module) -> list[tuple[int, str]]:
        found: dict[int, str] = {}  # of those at one address the first, as in the kernel (find_kallsyms_symbol)
        try:
            with self._kernel.reading("a module's symbols"):
                for symbol in symbols_of(module.object, self._kernel.memory.kernel):
                    self._left -= 1
                    if self._left < 0:
                        break
                    if symbol.n_type & ~N_EXT == N_TEXT:
                        found.setdefault(symbol.value, symbol.name)
        except KvmError:
            return []  # the frame has no name then, which says it
        return sorted(found.items())
