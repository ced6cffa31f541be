"""How many large answers may be with clients at once."""

from __future__ import annotations

import time

import pytest

from kvmd.worker.pace import Pace

A, B = 11, 12


@pytest.fixture
def pace() -> Pace:
    """Of a machine with three processors, beside small reads."""
    pace = Pace(processors=3)
    pace.small()
    return pace


def test_where_nobody_makes_small_reads_nothing_stands_back() -> None:
    pace = Pace(processors=1)
    for client in range(50):
        pace.filled(client, 0)
    assert not pace.crowded()
    assert pace.rest(clients=50) == 0


def test_one_answer_for_each_processor_but_the_workers(pace: Pace) -> None:
    assert pace.crowded()
    pace.filled(A, 0)
    assert pace.rest(clients=4) == 0
    pace.filled(B, 1)
    assert 0 < pace.rest(clients=4) <= 2e-3


def test_who_asks_again_has_copied(pace: Pace) -> None:
    pace.filled(A, 0)
    pace.filled(B, 1)
    pace.asked(B, 0)  # the other half
    assert pace.rest(clients=4) > 0
    pace.asked(B, 1)
    assert pace.rest(clients=4) == 0
    pace.filled(B, 1)
    pace.filled(B, 1)  # not asked for since
    pace.asked(B, 1)
    assert pace.rest(clients=4) == 0


def test_an_answer_counts_for_a_while_only(pace: Pace) -> None:
    pace.filled(A, 0)
    pace.filled(B, 0)
    time.sleep(pace.rest(clients=4))
    pace.small()
    assert pace.rest(clients=4) == 0


def test_small_reads_count_for_a_while_only(pace: Pace) -> None:
    time.sleep(6e-3)
    assert not pace.crowded()
    pace.filled(A, 0)
    pace.filled(B, 0)
    assert pace.rest(clients=4) == 0
    pace.small()
    assert pace.rest(clients=4) == 0, "what was given while there were none is no reason to wait"


def test_where_each_has_a_processor_nobody_waits(pace: Pace) -> None:
    for half in (0, 1):
        pace.filled(A, half)
        pace.filled(B, half)
    assert pace.rest(clients=3) == 0
    assert pace.rest(clients=4) > 0


def test_one_processor_is_enough_to_go_on() -> None:
    pace = Pace(processors=1)
    pace.small()
    assert pace.rest(clients=9) == 0
    pace.filled(A, 0)
    assert pace.rest(clients=9) > 0
