"""Records: what a frozen dataclass promises."""

from __future__ import annotations

import pytest

from kvmd.record import Record


class Door(Record):
    """A door."""

    wide: int = 3
    # What is written on it.
    label: str = "in"

    def check(self) -> None:
        if self.wide < 1:
            raise ValueError("wide: must be at least 1")


class Gate(Record):
    """One of the same shape."""

    wide: int = 3
    label: str = "in"


class Wall(Record):
    """What has no default."""

    high: int


def test_values_are_those_given_or_the_defaults() -> None:
    door = Door(label="out")
    assert (door.wide, door.label) == (3, "out")
    assert Door.names() == ("wide", "label")
    assert repr(door) == "Door(wide=3, label='out')"


def test_equal_values_make_equal_records_of_one_kind() -> None:
    assert Door() == Door(wide=3)
    assert Door() != Door(wide=4)
    assert Door() != Gate()


def test_nothing_changes_a_record() -> None:
    door = Door()
    for name in ("wide", "other"):
        with pytest.raises(AttributeError, match=name):
            setattr(door, name, 4)
    assert door == Door()
    assert door.replace(wide=4).replace(label="out") == Door(wide=4, label="out")
    assert door.wide == 3


def test_what_makes_no_sense_is_not_made() -> None:
    with pytest.raises(ValueError, match="wide: must be"):
        Door(wide=0)
    with pytest.raises(ValueError, match="wide: must be"):
        Door().replace(wide=0)
    with pytest.raises(TypeError, match="Door has no high"):
        Door(high=1)  # type: ignore[call-arg]


def test_values_may_be_given_in_order() -> None:
    assert Door(4, label="out") == Door(4, "out") == Door(wide=4, label="out")
    for values, named in (((4, "out", 1), {}), ((4,), {"wide": 4})):
        with pytest.raises(TypeError):
            Door(*values, **named)  # type: ignore[arg-type]


def test_one_without_a_default_must_be_given() -> None:
    assert Wall(2).high == 2
    with pytest.raises(TypeError, match="missing: high"):
        Wall()  # type: ignore[call-arg]


def test_equal_records_are_one_in_a_set() -> None:
    assert len({Door(), Door(wide=3), Door(wide=4), Gate()}) == 3
