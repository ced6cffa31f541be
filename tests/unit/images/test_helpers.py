"""drgn's helpers on kvmd's types and symbols, against drgn with DWARF; the count of those that work never goes down.

``helpers.json`` was made by tests/guest/helpers.py, which also writes docs/drgn-helpers.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from images import DATA, fixture

sys.path.insert(0, str(DATA.parent / "guest"))
import helpers

TRUTH: dict[str, tuple[str, Any]] = json.loads((DATA / "debian-6.1-panic" / "helpers.json").read_text())
TABLE = (Path(__file__).parents[3] / "docs" / "drgn-helpers.md").read_text()
DUMPS = tuple(
    f"{name}/vmcore.kdump"
    for name in (
        *("debian-6.1-panic", "qemu", "linux-5.10", "linux-5.15"),
        *("arm64-6.1", "x86-no-data-symbols", "s390x-6.1"),
    )
)


@pytest.fixture(scope="module", params=DUMPS)
def surveyed(request: pytest.FixtureRequest) -> tuple[str, dict[str, helpers.Outcome]]:
    return helpers.with_kvmd(str(fixture(request.param).path))


def test_every_helper_gives_what_it_gives_with_dwarf() -> None:
    _, found = helpers.with_kvmd(str(fixture(DUMPS[0]).path))
    assert found.keys() == TRUTH.keys()
    plain = json.loads(json.dumps({name: list(outcome) for name, outcome in found.items()}))
    assert {name: (plain[name], wanted) for name, wanted in TRUTH.items() if plain[name] != wanted} == {}
    assert sum(how == "works" for how, _ in TRUTH.values()) >= 399


def test_no_variable_of_the_kernel_lacks_a_type(surveyed: tuple[str, dict[str, helpers.Outcome]]) -> None:
    _, found = surveyed
    assert {name: outcome for name, outcome in found.items() if outcome.how == "lacks"} == {}


def test_the_table_says_what_is_so(surveyed: tuple[str, dict[str, helpers.Outcome]]) -> None:
    release, found = surveyed
    row = re.search(rf"^\| {re.escape(release + helpers.SMALL)} \|(.*)\|$", TABLE, re.MULTILINE)
    assert row
    counts = Counter(outcome.how for outcome in found.values())
    *cells, same = row[1].split("|")
    assert [int(cell) for cell in cells] == [counts[how] for how in helpers.HOWS]
    assert same.strip() == "-"
