"""Whatever drgn would load on first use, imported with this package: a worker has only the modules that it holds.

drgn loads plugins (entry points of any installed distribution, and what DRGN_PLUGINS names) into the process when a
Program gets its target. A process that parses hostile files runs no code that kvmd didn't choose.
"""

from __future__ import annotations

import importlib
import logging
import os

_LAZY = ("_drgn_util.plugins", "drgn.helpers.linux", "drgn.helpers.linux.hugetlb")


def prime() -> None:
    """Turn drgn's plugins off and import what it imports late."""
    os.environ.pop("DRGN_PLUGINS", None)
    os.environ["DRGN_DISABLE_PLUGINS"] = "*"
    logging.getLogger("drgn").addHandler(logging.NullHandler())  # its warnings would go to stderr
    for module in _LAZY:
        importlib.import_module(module)
