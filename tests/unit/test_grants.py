"""Tickets: good once, soon, in the hands they were given to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kvmd import grants as module
from kvmd.access.limits import Quota
from kvmd.errors import KvmError, Reason
from kvmd.fast import TICKET
from kvmd.front.peer import Certificate, Peer
from kvmd.front.peers import Peers
from kvmd.grants import Grants
from kvmd.images.base import Kind

PEER = Peer(1000, 1000, 77, (5,), start_time=123)


@dataclass(frozen=True)
class Descriptor:
    """As much of one as a ticket needs."""

    id: str = "d"
    owner: str = "uid:1000"
    kind: Kind = Kind.DUMP


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def quota() -> Quota:
    return Quota("direct", Reason.DESCRIPTOR_LIMIT, 10, 5, ("direct", "direct_per_uid"), "are read directly")


def connection(peer: Peer = PEER) -> Any:
    return Peers().add(peer)


def made(grants: Grants, caller: Any, descriptor: Any = Descriptor()) -> bytes:
    return grants.ticket(caller, descriptor)


async def test_once() -> None:
    grants, caller = Grants(quota(), 0), connection()
    ticket = made(grants, caller)
    assert len(ticket) == TICKET
    assert grants.redeem(ticket, PEER) == (caller, Descriptor())
    assert grants.redeem(ticket, PEER) is None


async def test_tickets_differ() -> None:
    grants, caller = Grants(quota(), 0), connection()
    assert len({made(grants, caller) for _ in range(5)}) == 5


@pytest.mark.parametrize("other", [{"pid": 78}, {"uid": 0}, {"start_time": 124}, {"start_time": None}])
async def test_other_hands_spend_it(other: dict[str, Any]) -> None:
    grants, thief = Grants(quota(), 0), PEER.replace(**other)
    ticket = made(grants, connection())
    assert grants.redeem(ticket, thief) is None
    assert grants.redeem(ticket, PEER) is None


async def test_too_late(clock: list[float]) -> None:
    grants = Grants(quota(), 0)
    ticket = made(grants, connection())
    clock[0] += module.TICKET_SECONDS
    assert grants.redeem(ticket, PEER) is None


async def test_tickets_that_nobody_hands_in_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(module, "TICKET_SECONDS", 0.05)
    grants = Grants(quota(), 0)
    made(grants, connection())
    await asyncio.sleep(0.1)
    assert not grants._tickets


async def test_a_connection_that_is_gone() -> None:
    grants, caller = Grants(quota(), 0), connection()
    ticket = made(grants, caller)
    caller.close()
    assert grants.redeem(ticket, PEER) is None


@pytest.mark.parametrize(
    ("peer", "kind"),
    [
        (PEER.replace(certificate=Certificate("someone", 1, 2e9, "192.0.2.1")), Kind.DUMP),
        (PEER.replace(pid=0), Kind.DUMP),  # of a pid namespace that can't be seen: processes can't be told apart
        (PEER, Kind.PROCFS),
    ],
)
async def test_who_gets_none(peer: Peer, kind: Kind) -> None:
    with pytest.raises(KvmError) as refused:
        made(Grants(quota(), 0), connection(peer), Descriptor(kind=kind))
    assert refused.value.reason is Reason.UNSUPPORTED


async def test_limit_of_one_owner() -> None:
    grants, caller = Grants(quota(), 0), connection()
    for _ in range(5):
        made(grants, caller)
    with pytest.raises(KvmError) as refused:
        made(grants, caller)
    assert refused.value.reason is Reason.DESCRIPTOR_LIMIT
    assert made(grants, caller, Descriptor(owner="uid:2"))


async def test_ending_what_is_not_there() -> None:
    grants: Any = Grants(quota(), 0)
    grants.end(Descriptor())
    assert grants.counts(Descriptor()) == (0, 0)
    grants.review(lambda peer, image: False)
    grants.close()
