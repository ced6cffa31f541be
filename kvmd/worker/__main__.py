"""A worker process: ``python -m kvmd.worker SOCKET MEMORY CPU HELPERS PARENT [CLIENT|writable]``.

Started by the daemon. HELPERS is how many processes it starts beside itself, for long reads of packed dumps; their
memory is of its own.

CLIENT, for KVM_NO_FILES, is whose rights to take (:meth:`kvmd.worker.sandbox.Identity.decode`); ``writable`` lets it
write at an offset of a file that it is given: /dev/mem, for the running kernel opened with O_RDWR.
"""

from __future__ import annotations

import gc
import sys

from kvmd import late

LATE = (
    # What images need: most need a third of it.
    *("kvmd.images", "drgn.helpers", "_drgn_util"),
    # protobuf without its C extension, and what is imported for a fault's report or a class without a docstring.
    *("google.protobuf.descriptor_database", "google.protobuf.internal.python_edition_defaults"),
    *("google.protobuf.internal.python_message", "ast", "dis", "inspect", "opcode", "textwrap", "token", "tokenize"),
)
"""What runs when it is first used."""


def main() -> None:
    """Import what a worker is made of, and run."""
    gc.disable()  # nothing of it becomes garbage
    late.start(*LATE)
    from kvmd.worker.start import run  # noqa: PLC0415 - after that

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
