"""Whose rights the worker of KVM_NO_FILES has, and when the policy is asked all the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvmd import syscalls
from kvmd.access.policy import Policy, Rule
from kvmd.errors import AccessError
from kvmd.front.peer import Certificate, Peer
from kvmd.handles.bounds import RunAs
from kvmd.images.base import Kind
from kvmd.sessions import PROCFS_ENVIRONMENTS, Rules, Sessions, _rights
from kvmd.wanted import PROCFS, Wanted, understood

CAN_BECOME = 1 << 6 | 1 << 7
ALL = ("info", "symbols", "read", "processes", "arguments", "environment", "files", "log")


@dataclass
class Caller:
    peer: Peer = field(default_factory=lambda: Peer(4001, 4002, 1, (7, 8)))


REMOTE = Caller(Peer(0, 0, 0, certificate=Certificate("someone", 1, 4e9, "host:1")))


def sessions(*rules: Rule) -> Any:
    nothing: Any = None
    return Sessions(nothing, nothing, nothing, nothing, nothing, Rules(Policy(rules)))


@pytest.fixture
def capable(monkeypatch):
    def set_to(value: bool, uid: int = 0) -> None:
        monkeypatch.setattr(syscalls, "capabilities", lambda: (CAN_BECOME if value else 1 << 7, 0, 0))
        monkeypatch.setattr(os, "geteuid", lambda: uid)

    return set_to


@pytest.mark.parametrize("flags", [0x80000000, 0x80000001, 0xFFFFFFFF])
def test_the_flag_wins(flags):
    assert understood("x" * 9999, "../" * 999, ("", "y" * 9999), flags) == Wanted(Kind.PROCFS, PROCFS)


def test_a_local_client_needs_no_rule():
    none = sessions()
    assert none._view(Caller()) == PROCFS
    assert none._allowed(Caller(), PROCFS, ALL).allowed


def test_the_verb_is_asked_for_again_where_it_made_a_difference():
    rule = Rule(("uid:4001",), ("live",), ("environment",))
    assert sessions(rule)._view(Caller()) == PROCFS_ENVIRONMENTS
    assert sessions(rule)._allowed(Caller(), PROCFS_ENVIRONMENTS, ("environment",)).allowed
    after = sessions()
    with pytest.raises(AccessError) as failure:
        after._allowed(Caller(), PROCFS_ENVIRONMENTS, ("environment",))
    assert (failure.value.metadata["image"], failure.value.metadata["verb"]) == ("live", "environment")
    assert after._allowed(Caller(), PROCFS_ENVIRONMENTS, ("processes", "arguments")).allowed


def test_a_verb_on_another_image_is_none():
    rule = Rule(("uid:4001",), ("live:mem", "dump:*"), ("*",))
    assert sessions(rule)._view(Caller()) == PROCFS


def test_a_client_with_a_certificate_has_what_the_policy_gives_it_and_nobodys_rights(capable):
    capable(True)
    with pytest.raises(AccessError):
        sessions()._allowed(REMOTE, PROCFS, ("info",))
    given = sessions(Rule(("cert:someone",), ("live",), ("*",)))
    assert given._allowed(REMOTE, PROCFS, ALL).allowed
    assert given._view(REMOTE) == PROCFS
    assert _rights(REMOTE, environments=False) == RunAs(65534, 65534)
    capable(False, 4001)
    with pytest.raises(AccessError):
        _rights(REMOTE, environments=False)


def test_rights_are_the_clients(capable):
    capable(True)
    assert _rights(Caller(), environments=False) == RunAs(4001, 4002, (7, 8))
    assert _rights(Caller(), environments=True).encode() == "4001:4002:7,8:environments"


def test_a_daemon_that_cant_take_them_serves_its_own_user_and_root(capable):
    capable(False, 4001)
    assert _rights(Caller(), environments=False).uid == 4001
    assert _rights(Caller(Peer(0, 0, 1)), environments=True).uid == 0
    with pytest.raises(AccessError, match="its own user only"):
        _rights(Caller(Peer(4002, 4002, 1)), environments=False)
    capable(False, 0)
    with pytest.raises(AccessError):
        _rights(Caller(), environments=False)
