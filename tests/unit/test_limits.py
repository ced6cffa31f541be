"""Quotas and rates, against a model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.access.limits import Flow, Quotas, Rate
from kvmd.config import Limits
from kvmd.errors import TABLE, KvmError, Reason

OWNERS = st.sampled_from(["uid:1", "uid:2", "cert:a"])


@given(st.lists(st.tuples(OWNERS, st.integers(-5, 5)), max_size=60))
@settings(deadline=None)
def test_a_quota_is_what_is_left_of_all_and_of_ones_own(steps: list[tuple[str, int]]) -> None:
    quota = Quotas(Limits(inflight_bytes=20, inflight_bytes_per_uid=9))["inflight_bytes"]
    model: Counter[str] = Counter()
    for owner, amount in steps:
        if amount < 0:
            back = min(-amount, model[owner])
            if back:
                quota.give(owner, back)
                model[owner] -= back
            continue
        if model.total() + amount > 20 or model[owner] + amount > 9:
            with pytest.raises(KvmError) as failure:
                quota.take(owner, amount)
            assert failure.value.reason is Reason.BYTES_LIMIT
            of_all = model.total() + amount > 20
            key = "inflight_bytes" if of_all else "inflight_bytes_per_uid"
            assert failure.value.metadata == {"limit": "20" if of_all else "9", "key": key}
            assert f"(limits.{key})" in failure.value.message
        else:
            quota.take(owner, amount)
            model[owner] += amount
        assert quota.used == model.total()
        assert all(quota.of(each) == model[each] for each in model)


def test_what_is_held_is_given_back_however_it_ends() -> None:
    quota = Quotas(Limits(streams=2))["streams"]
    with pytest.raises(ZeroDivisionError), quota.held("uid:1"), quota.held("uid:1"):
        1 / 0  # noqa: B018
    assert (quota.used, quota.of("uid:1"), quota.refused) == (0, 0, 0)
    with quota.held("uid:1"), quota.held("uid:2"), pytest.raises(KvmError, match=r"limits\.streams\)"):
        quota.take("uid:3")
    assert quota.refused == 1


def test_every_limit_is_a_key_and_a_typed_refusal() -> None:
    keys = set(Limits.names())
    quotas = Quotas(Limits())
    for quota in quotas.all.values():
        assert set(quota.keys) <= keys
        assert TABLE[quota.reason].status == "RESOURCE_EXHAUSTED"
        assert quota.most_per_owner < quota.most, "one identity could use up what belongs to all"
    assert {"calls_per_second", "calls_per_second_per_uid", "received_bytes_per_second_per_uid"} <= keys
    assert quotas.rate.most_per_owner < quotas.rate.most


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(OWNERS, st.floats(0, 0.6)), max_size=120))
@settings(deadline=None)
def test_no_more_pass_than_the_rate_and_a_seconds_worth(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    rate = Rate(12, 5, clock)
    began, passed = clock.now, Counter[str]()
    for owner, pause in steps:
        clock.now += pause
        try:
            rate.pass_(owner)
        except KvmError as failure:
            assert failure.reason is Reason.RATE_LIMIT
            continue
        passed[owner] += 1
        elapsed = clock.now - began
        assert passed[owner] <= 5 * (elapsed + 1) + 1e-6
        assert passed.total() <= 12 * (elapsed + 1) + 1e-6


def test_who_waits_may_go_on_and_is_forgotten_meanwhile() -> None:
    clock = Clock()
    rate = Rate(100, 3, clock)
    for _ in range(3):
        rate.pass_("uid:1")
    with pytest.raises(KvmError, match=r"3 calls of uid:1 in a second already \(limits.calls_per_second_per_uid\)"):
        rate.pass_("uid:1")
    rate.pass_("uid:2")
    clock.now += 0.4
    rate.pass_("uid:1")
    clock.now += 5
    rate.pass_("uid:3")
    assert set(rate._buckets._owned) == {"uid:3"}
    assert rate.refused == 1


@given(st.lists(st.tuples(OWNERS, st.integers(0, 300), st.floats(0, 0.5)), max_size=60))
def test_a_flow_is_never_faster_than_its_limit(steps: list[tuple[str, int, float]]) -> None:
    """Whoever waits as long as is said sends no more than a second's worth in a second, and a quarter at once."""
    clock = Clock()
    flow, began = Flow(100, clock), clock.now
    sent: Counter[str] = Counter()
    until: dict[str, float] = {}
    for owner, amount, pause in steps:
        clock.now = max(clock.now + pause, until.get(owner, 0.0))
        assert sent[owner] <= 100 * (clock.now - began) + 25 + 1e-6
        sent[owner] += amount
        until[owner] = clock.now + flow.came(owner, amount)
    assert flow.waits <= len(steps)


def test_refused_calls_make_their_caller_wait_but_not_for_ever() -> None:
    clock = Clock()
    flow = Flow(6400, clock)
    for _ in range(10):
        flow.refused("uid:1")
    assert flow.came("uid:1", 600) == 0.0
    for _ in range(10_000):
        flow.refused("uid:1")
    assert flow.came("uid:1", 64) == pytest.approx(1.01)
    assert flow.came("uid:2", 64) == 0.0
