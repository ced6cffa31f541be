"""A worker process: ``python -m kvmd.worker SOCKET MEMORY CPU HELPERS PARENT [CLIENT|writable]``.

Started by the daemon. HELPERS is how many processes it starts beside itself, for long reads of packed dumps; their
memory is of its own.

CLIENT, for KVM_NO_FILES, is whose rights to take (:meth:`kvmd.worker.sandbox.Identity.decode`); ``writable`` lets it
write at an offset of a file that it is given: /dev/mem, for the running kernel opened with O_RDWR.
"""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType

# One of drgn's helpers, which are imported all or none, imports drgn's command line: a fifth of all that is imported.
_UNUSED = "drgn.helpers.linux.stack"


class _Absent(ModuleType):
    """Stands for a module that nobody uses, until somebody does."""

    __all__ = ()

    def __getattr__(self, name: str) -> object:
        sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


def main() -> None:
    """Import what a worker is made of, and run."""
    gc.disable()  # nothing of it becomes garbage
    sys.modules[_UNUSED] = _Absent(_UNUSED)
    from kvmd.worker.start import run  # noqa: PLC0415 - after that

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
