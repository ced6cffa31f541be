"""What is asked of the C library for the whole process."""

from __future__ import annotations

import subprocess
import sys

_PASS_ON = """
import resource, sys
from kvmd.syscalls import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def pass_on():
    parts = [bytes(1 << 20) for _ in range(4)]
    return b"".join(parts)
pass_on()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    pass_on()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_was_freed_is_used_again() -> None:
    faults = {}
    for what in ("keep", "plain"):
        command = [sys.executable, "-c", _PASS_ON, what]
        faults[what] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert faults["keep"] * 10 < faults["plain"]
