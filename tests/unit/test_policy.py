"""Rules, and what they decide."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.access.policy import VERBS, Policy, Rule, RuleError


@dataclass(frozen=True)
class Peer:
    """A subject."""

    uid: int = 4711
    groups: tuple[int, ...] = ()
    cert: str | None = None
    gid: int = 4712


def policy(*rules: tuple[list[str], list[str], list[str]]) -> Policy:
    return Policy(tuple(Rule(tuple(a), tuple(b), tuple(c), origin=f"f:{n}") for n, (a, b, c) in enumerate(rules)))


@given(uid=st.integers(1, 2**32 - 1).filter(lambda uid: uid != os.geteuid()), verb=st.sampled_from(VERBS))
def test_empty_policy_denies_everybody(uid: int, verb: str) -> None:
    decision = Policy().decide(Peer(uid, (0, 1)), "dump:/var/crash/a", verb)
    assert (decision.allowed, decision.rule) == (False, "default")


@pytest.mark.parametrize("verb", VERBS)
def test_root_and_own_uid_need_no_rule(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Policy().decide(Peer(0), "live", verb).allowed
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert Policy().decide(Peer(1234), "live", verb).allowed
    assert not Policy().decide(Peer(1235), "live", verb).allowed


def test_nobody_by_certificate_is_root() -> None:
    """A remote peer's uid and groups count for nothing, whatever they are."""
    rules = policy((["uid:7", "gid:8", "self"], ["live"], ["*"]))
    for uid in (0, 7, os.geteuid()):
        assert not rules.decide(Peer(uid, (8,), "root", 8), "live", "info").allowed


@pytest.mark.parametrize(
    ("subject", "peer"),
    [
        ("user:nobody", Peer(65534)),
        ("uid:41000", Peer(41000)),
        ("group:nogroup", Peer(7, (65534,))),
        ("gid:44", Peer(7, (3, 44))),
        ("gid:45", Peer(7, (3,), None, 45)),
        ("cert:ann", Peer(cert="ann")),
    ],
)
def test_each_subject(subject: str, peer: Peer) -> None:
    rules = policy(([subject], ["dump:*"], ["info"]))
    assert rules.decide(peer, "dump:/x", "info").allowed
    assert not rules.decide(Peer(7, (7,), None), "dump:/x", "info").allowed


@pytest.mark.parametrize(
    ("glob", "image", "matches"),
    [
        ("dump:/var/crash/*", "dump:/var/crash/a/vmcore", True),
        ("dump:/var/crash/*", "dump:/var/crashes", False),
        ("dump:*.elf", "dump:/a\n.elf", True),
        ("dump:/a", "dump:/a\n", False),
        ("live", "live:mem", False),
        ("live:mem", "live", False),
        ("dump:*", "live", False),
    ],
)
def test_each_image(glob: str, image: str, matches: bool) -> None:
    assert policy((["uid:41000"], [glob], ["read"])).decide(Peer(41000), image, "read").allowed is matches


def test_first_match_names_its_rule() -> None:
    rules = policy(
        (["uid:1"], ["dump:*"], ["info"]),
        (["uid:41000"], ["dump:/a*"], ["*"]),
        (["uid:41000"], ["dump:*"], ["info"]),
    )
    assert rules.decide(Peer(41000), "dump:/ab", "info").rule == "f:1"
    assert rules.decide(Peer(41000), "dump:/b", "info").rule == "f:2"
    assert rules.decide(Peer(41000), "dump:/b", "read").rule == "default"


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ((["nobody"], ["live"], ["info"]), "subjects"),
        ((["user:no-such-user-here"], ["live"], ["info"]), "subjects"),
        ((["uid:-1"], ["live"], ["info"]), "subjects"),
        ((["uid:\uff11"], ["live"], ["info"]), "subjects"),
        ((["cert:"], ["live"], ["info"]), "subjects"),
        ((["self"], ["dumps:*"], ["info"]), "images"),
        ((["self"], ["dump:"], ["info"]), "images"),
        ((["self"], ["live"], ["execute"]), "verbs"),
        (([], ["live"], ["info"]), "subjects"),
        ((["self"], ["live"], []), "verbs"),
    ],
)
def test_wrong_rule_names_its_key(rule: tuple[list[str], list[str], list[str]], key: str) -> None:
    with pytest.raises(RuleError) as wrong:
        policy(rule)
    assert wrong.value.key == key
