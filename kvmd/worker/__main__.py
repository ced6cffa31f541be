"""A worker process: ``python -m kvmd.worker SOCKET MEMORY CPU HELPERS PARENT [CLIENT|writable]``.

Started by the daemon. HELPERS is how many processes it starts beside itself, for long reads of packed dumps; their
memory is of its own.

CLIENT, for KVM_NO_FILES, is whose rights to take (:meth:`kvmd.worker.sandbox.Identity.decode`); ``writable`` lets it
write at an offset of a file that it is given: /dev/mem, for the running kernel opened with O_RDWR.
"""

from __future__ import annotations

import gc
import os
import sys

from kvmd import late

LATE = ("kvmd.images", "drgn.helpers", "base64", "bisect", "copy", "dataclasses", "json", *late.SELDOM)
"""What runs when it is first used: of what reads images, and of what that imports, an image needs a third."""


def main() -> None:
    """Import what a worker is made of, and run."""
    gc.disable()  # nothing of it becomes garbage
    os.environ["PYTHON_ZSTANDARD_IMPORT_POLICY"] = "cext"  # or it asks platform, of which nobody else has use
    late.start(*LATE)
    from kvmd.worker.start import run  # noqa: PLC0415 - after that

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
