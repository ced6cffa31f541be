"""docs/kernels.md says what the dumps of tests/data give, and nothing in it got worse."""

from __future__ import annotations

import json

import pytest

import kernel_page
from kernel_page import CHECKS, FIXTURES, NONE, PAGE, WHOLE, WHOLE_CHECKS, cells, table

KEPT, _, REST = PAGE.read_text().partition(kernel_page.BETWEEN)


# Of data objects that only drgn's helpers look at, those that are found by what VMCOREINFO tells.
UNFOUND = {
    "6.1-arm64-wiped": 1,
    "6.1-no-kallsyms-all-wiped": 3,
    "6.1, no KALLSYMS_ALL, no VMCOREINFO": 3,
    "6.1 of Debian, arm64, no KALLSYMS_ALL, no VMCOREINFO": 1,
}


def whole(name: str, check: str, cell: str) -> bool:
    right, _, number = cell.partition(" of ")
    return int(right) == int(number) - (UNFOUND.get(name, 0) if check == "symbols" else 0)


def test_the_rest_of_the_page() -> None:
    assert KEPT.startswith(kernel_page.HEAD)
    rows = json.loads(WHOLE.read_text())
    assert "\n".join(table(rows)) + "\n" == REST
    for name, row in rows.items():
        assert list(row)[: len(WHOLE_CHECKS)] == list(WHOLE_CHECKS)
        counts = {check: cell for check, cell in row.items() if " of " in cell}
        assert len(counts) == len(WHOLE_CHECKS) - 2
        assert all(whole(name, check, cell) for check, cell in counts.items()), row


@pytest.mark.parametrize("name", FIXTURES)
def test_a_row_is_what_the_dump_gives(name: str) -> None:
    (head, _, line) = table({name: cells(FIXTURES[name](), CHECKS)})
    assert KEPT.splitlines().count(line) == 1
    assert head in KEPT.splitlines()
    row = dict(zip(CHECKS, line.strip("| ").split(" | ")[1:], strict=True))
    for check in ("symbols", "members", "tasks", "log", "stacks"):
        assert row[check] == NONE or whole(name, check, row[check])


def test_a_wrong_value_is_counted() -> None:
    truth = FIXTURES["5.10"]()
    truth.symbols[5] = (truth.symbols[5][0], 1)
    truth.members["task_struct.pid"] = [0, 32]
    truth.tasks[3] = (1, "init", 0)
    truth.log[7] = (truth.log[7][0], "another text")
    truth.processes[2] = (2, 1, b"kthreadd")
    pid, pcs = next(iter(truth.unwound.items()))
    truth.unwound[pid] = [*pcs, 0]
    for check, row in cells(truth, CHECKS).items():
        right, found, number = row.partition(" of ")
        if found and check != "argv, environ":
            assert int(right) == int(number) - 1, check
