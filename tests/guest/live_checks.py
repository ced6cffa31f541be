"""Checks of kvmd on the kernel it runs on, as root in a guest; see ``run``. Clients are ordinary users.

    live_checks.py [CHECK...]

One function a check, all in CHECKS; a check that returns has passed, and what it returns is shown.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from live_access import ACCESS
from live_freebsd import FREEBSD
from live_lockdown import LOCKDOWN
from live_memory import MEMORY
from live_processes import PROCESSES
from live_stacks import STACKS
from live_swap import SWAP
from live_symbols import SYMBOLS
from live_system import SYSTEM
from live_types import TYPES

from guest import Daemon

Check = Callable[[], str]
# New checks are added to a table of their own file, or here; those of /dev/mem and of lockdown come last, for they
# change this kernel.
FAMILIES = (SYMBOLS, TYPES, PROCESSES, STACKS, SYSTEM, ACCESS, FREEBSD, SWAP, MEMORY, LOCKDOWN)
CHECKS: dict[str, Check] = {name: check for family in FAMILIES for name, check in family.items()}


def say(text: str) -> None:
    """Show a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(name: str) -> bool:
    """Run a check and say how it went."""
    began = time.monotonic()
    try:
        detail = CHECKS[name]()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        detail = ""
        good = False
    else:
        good = True
    say(f"{'ok  ' if good else 'FAIL'} {name} ({time.monotonic() - began:.1f} s) {detail}")
    return good


def main() -> int:
    """Run the named checks, or all."""
    wanted = sys.argv[1:] or list(CHECKS)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        daemon = Daemon(Path(directory))
        failed = [name for name in wanted if not run(name)]
        status = daemon.stop()
        if failed or status:
            say(f"kvmd ended with status {status}; its log ends:\n{daemon.log.read_text()[-6000:]}")
    which = f"; failed: {', '.join(failed)}" if failed else ""
    say(f"{len(wanted) - len(failed)} of {len(wanted)} checks passed{which}")
    return 1 if failed or status else 0


if __name__ == "__main__":
    sys.exit(main())
