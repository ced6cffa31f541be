#!/usr/bin/env python3
"""Makes tests/data/swap-entries.json: swap entries as the kernel's own macros write them.

    tools/swap_vectors.py TREE... > tests/data/swap-entries.json

Each TREE is a directory named by its release (``6.1``) with a kernel's source, of which the headers are enough. The
macros are taken from there, compiled with the machine's C compiler, and asked.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = ("CONFIG_MEMORY_FAILURE", "CONFIG_MIGRATION", "CONFIG_DEVICE_PRIVATE", "CONFIG_PTE_MARKER")
NAMES = {
    "hwpoison": ("SWP_HWPOISON",),
    "migration": ("SWP_MIGRATION_READ", "SWP_MIGRATION_READ_EXCLUSIVE", "SWP_MIGRATION_WRITE"),
    "device": (
        *("SWP_DEVICE_READ", "SWP_DEVICE_WRITE", "SWP_DEVICE_EXCLUSIVE"),
        *("SWP_DEVICE_EXCLUSIVE_READ", "SWP_DEVICE_EXCLUSIVE_WRITE"),
    ),
    "marker": ("SWP_PTE_MARKER",),
    "swap error": ("SWP_SWAPIN_ERROR",),
}
SLOTS = [
    (kind, offset) for kind in (0, 1, 7, 22) for offset in (1, 2, 0x1234, 0xFFFFFFFF, (1 << 40) + 5, (1 << 50) - 1)
]
HEADERS = {
    "x86_64": ("arch/x86/include/asm/pgtable_64.h", r"#define SWP_TYPE_BITS.*?#define __pte_to_swp_entry"),
    "aarch64": ("arch/arm64/include/asm/pgtable.h", r"#define __SWP_TYPE_SHIFT.*?#define __pte_to_swp_entry"),
}
PROGRAM = """
#include <stdio.h>
#define BIT(n) (1UL << (n))
#define _PAGE_BIT_PROTNONE 8 /* arch/x86/include/asm/pgtable_types.h: _PAGE_BIT_GLOBAL */
typedef struct { unsigned long val; } swp_entry_t;
%s
int main(void) {
%s
}
"""


def macros(tree: Path, header: str, pattern: str) -> str:
    """The part of a header that a pattern finds, without its last line."""
    found = re.search(pattern, (tree / header).read_text(), re.DOTALL)
    assert found, (tree, header)
    return found[0].rpartition("\n")[0]


def run(definitions: str, statements: str, options: tuple[str, ...] = ()) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "vectors.c")
        source.write_text(PROGRAM % (definitions, statements))
        subprocess.run(["cc", "-w", *options, "-o", f"{folder}/vectors", source], check=True)
        return subprocess.run([f"{folder}/vectors"], check=True, stdout=subprocess.PIPE, text=True).stdout


def entries(tree: Path, machine: str) -> list[list[int]]:
    """[type, offset, entry] of every slot."""
    prints = "".join(
        f'  printf("[{kind},{offset},%lu],", __swp_entry({kind}UL, {offset}UL).val);\n' for kind, offset in SLOTS
    )
    header, pattern = HEADERS[machine]
    return json.loads("[" + run(macros(tree, header, pattern), prints).rstrip(",") + "]")


def numbers(tree: Path, configs: tuple[str, ...]) -> dict[str, list[int]]:
    """The types that are reserved, and how many are not."""
    pattern = r"#define MAX_SWAPFILES_SHIFT.*?(?=/\*\n \* Magic header)"
    definitions = macros(tree, "include/linux/swap.h", pattern)
    prints = '  printf("{\\"areas\\":[%lu]", (unsigned long)(MAX_SWAPFILES));\n'
    for word, names in NAMES.items():
        for name in names:
            prints += f'#ifdef {name}\n  printf(",\\"{word}\\":[%d]", {name});\n#endif\n'
    options = tuple(f"-D{name}=1" for name in configs)
    pairs = json.loads(run(definitions, prints + '  printf("}");\n', options), object_pairs_hook=list)
    found: dict[str, list[int]] = {}
    for word, values in pairs:
        found.setdefault(word, []).extend(values)
    return {word: sorted(values) for word, values in found.items()}


def main() -> None:
    document = []
    for tree in map(Path, sys.argv[1:]):
        combinations = itertools.chain.from_iterable(
            itertools.combinations(CONFIGS, n) for n in range(len(CONFIGS) + 1)
        )
        reserved = [{"configs": list(chosen), "types": numbers(tree, chosen)} for chosen in combinations]
        slots = {machine: entries(tree, machine) for machine in HEADERS}
        document.append({"release": tree.name, "slots": slots, "reserved": reserved})
    json.dump(document, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
