"""What a worker imports before it is ready."""

from __future__ import annotations

import subprocess
import sys

# main() ends at the first thing that it does with its arguments, of which there are none.
_BEGIN = """
import sys
from kvmd.worker.__main__ import main
sys.argv = ["kvmd.worker"]
try:
    main()
except ValueError:
    print("drgn.helpers.linux.mm" in sys.modules, "drgn.cli" in sys.modules)
"""
_USE = """
from drgn.helpers.linux.stack import kernel_stack_trace
print(kernel_stack_trace.__module__, "drgn.cli" in sys.modules)
"""


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_drgns_command_line_is_left_out() -> None:
    assert said(_BEGIN) == ["True", "False"]


def test_what_is_left_out_is_there_for_who_uses_it() -> None:
    assert said(_BEGIN + _USE) == ["True", "False", "drgn.helpers.linux.stack", "True"]
