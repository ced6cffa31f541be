"""The printk ring buffer's records."""

from __future__ import annotations

from collections.abc import Iterator

from drgn.helpers.linux.printk import get_printk_records

from kvmd.images.linux.kernel import Kernel
from kvmd.v1 import image_pb2


def records(kernel: Kernel) -> Iterator[image_pb2.LogRecord]:
    """Read the records, oldest first. Times are nanoseconds since boot.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA, or the fault of a page that holds the buffer.
    """
    kernel.need_types()
    kernel.address("prb" if kernel.builtin("prb") else "log_buf")
    with kernel.reading("the kernel's log"):
        found = get_printk_records(kernel.prog)
    for record in found:
        yield image_pb2.LogRecord(
            timestamp_ns=record.timestamp,
            level=record.level,
            facility=record.facility,
            sequence=record.seq,
            text=record.text,
            continuation=record.continuation,
        )
