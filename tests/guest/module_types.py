"""Writes what bpftool says of the types in modules' BTF, which tests/unit/images/test_modtypes.py compares with.

    python tests/guest/module_types.py VMLINUX_BTF MODULE_BTF... > tests/data/FOLDER/module-types.json

The files are copies of /sys/kernel/btf/* of the kernel that was dumped; each is named as its module is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def types(base: str, path: str) -> dict[str, Any]:
    """Give the structs that a module's own BTF names, and its enumerators."""
    command = ["bpftool", "--json", "--base-btf", base, "btf", "dump", "file", path, "format", "raw"]
    found: dict[str, Any] = {}
    for row in json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["types"]:
        if row["kind"] == "STRUCT" and row["name"] != "(anon)":
            members = [[m["name"].replace("(anon)", ""), m["bits_offset"]] for m in row["members"]]
            found[f"struct {row['name']}"] = {"size": row["size"], "members": members}
        elif row["kind"] in ("ENUM", "ENUM64"):
            found.setdefault("constants", {}).update({v["name"]: v["val"] for v in row["values"]})
    return found


if __name__ == "__main__":
    truth = {Path(path).name: types(sys.argv[1], path) for path in sys.argv[2:]}
    json.dump(truth, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
