"""Facts about an image: each field by its own function, absent where the image can't tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drgn.helpers.linux.cpumask import num_online_cpus
from drgn.helpers.linux.mm import totalram_pages
from drgn.helpers.linux.panic import panic_message
from drgn.helpers.linux.timekeeping import ktime_get_coarse_boottime_ns, ktime_get_coarse_real_ns

from kvmd.errors import KvmError
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.system import load_average
from kvmd.v1 import image_pb2

_FIELD = 65  # __NEW_UTS_LEN + 1
_KREF = 4
_UTS = ("sysname", "nodename", "release", "version", "machine")
# Documentation/admin-guide/tainted-kernels.rst, by bit.
_TAINTS = "PFSRMBUDAWCIOELKXTNJ"


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", "replace")


def _uts(kernel: Kernel) -> dict[str, str]:
    offset = kernel.info.offset("uts_namespace.name")  # told since 5.11, before which a counter of 4 bytes came first
    start = kernel.address("init_uts_ns") + (_KREF if offset is None else offset)
    data = kernel.memory.kernel(start, _FIELD * len(_UTS))
    values = [_text(data[at : at + _FIELD]) for at in range(0, len(data), _FIELD)]
    return {name: value for name, value in zip(_UTS, values, strict=True) if name != "sysname"}


def _banner(kernel: Kernel) -> dict[str, str]:
    return {"banner": _text(kernel.memory.kernel(kernel.address("linux_banner"), 512)).rstrip("\n")}


def _taint(kernel: Kernel) -> dict[str, str]:
    mask = kernel.memory.number(kernel.address("tainted_mask"))
    if not mask:
        return {"taint": ""}
    letters = "".join(letter for bit, letter in enumerate(_TAINTS) if mask >> bit & 1)
    return {"taint": letters if mask & 1 else "G" + letters}


def _load(kernel: Kernel) -> dict[str, list[float]]:
    return {"load_average": load_average(kernel)}


def _panic(kernel: Kernel) -> dict[str, str]:
    message = panic_message(kernel.prog)
    return {"panic_message": message.decode("utf-8", "replace")} if message else {}


def _memory(kernel: Kernel) -> dict[str, int]:
    return {"memory_bytes": totalram_pages(kernel.prog) * kernel.dump.layout.page_size}


_FIELDS: tuple[Callable[[Kernel], dict[str, Any]], ...] = (
    _uts,
    _banner,
    _taint,
    _load,
)
_TYPED: tuple[Callable[[Kernel], dict[str, Any]], ...] = (
    _panic,
    _memory,
    lambda kernel: {"cpus_online": num_online_cpus(kernel.prog)},
    lambda kernel: {"uptime_ns": ktime_get_coarse_boottime_ns(kernel.prog).value_()},
    lambda kernel: {"time_ns": ktime_get_coarse_real_ns(kernel.prog).value_()},
)


def describe(kernel: Kernel) -> image_pb2.Info:
    """Describe an image; never fails for what a page or symbol that is missing would have told."""
    known: dict[str, Any] = {
        "format": kernel.dump.layout.format,
        "release": kernel.info.release,
        "page_size": kernel.dump.layout.page_size,
        "symbols": kernel.symbols_source,
        "types": kernel.types_source,
        "kaslr_offset": kernel.info.kaslr_offset,
        "phys_base": kernel.info.number("phys_base"),
        "build_id": kernel.info.build_id or None,
        "paging_levels": kernel.memory.levels,
    }
    fields = (*_FIELDS, *_TYPED) if known["types"] else _FIELDS
    for field in fields:
        try:
            with kernel.reading("a fact of the image"):
                known |= field(kernel)
        except KvmError:
            continue
    return image_pb2.Info(**{name: value for name, value in known.items() if value is not None})
