"""docs/kernels.md says what the dumps of tests/data give, and nothing in it got worse."""

from __future__ import annotations

import json

import pytest

import kernel_page
from kernel_page import CHECKS, FIXTURES, NONE, PAGE, WHOLE, WHOLE_CHECKS, cells, table

KEPT, _, REST = PAGE.read_text().partition(kernel_page.BETWEEN)


def test_the_rest_of_the_page() -> None:
    assert KEPT.startswith(kernel_page.HEAD)
    whole = json.loads(WHOLE.read_text())
    assert "\n".join(table(whole)) + "\n" == REST
    for row in whole.values():
        assert list(row)[: len(WHOLE_CHECKS)] == list(WHOLE_CHECKS)
        counts = [cell.split(" of ") for cell in row.values() if " of " in cell]
        assert len(counts) == len(WHOLE_CHECKS) - 2
        assert all(right == number for right, number in counts), row


@pytest.mark.parametrize("name", FIXTURES)
def test_a_row_is_what_the_dump_gives(name: str) -> None:
    (head, _, line) = table({name: cells(FIXTURES[name](), CHECKS)})
    assert KEPT.splitlines().count(line) == 1
    assert head in KEPT.splitlines()
    row = dict(zip(CHECKS, line.strip("| ").split(" | ")[1:], strict=True))
    for check in ("symbols", "members", "tasks", "log", "stacks"):
        right, _, number = row[check].partition(" of ")
        assert right == number or row[check] == NONE


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
