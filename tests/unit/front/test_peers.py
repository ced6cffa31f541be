"""The table of connections."""

from __future__ import annotations

import pytest

from kvmd.front.peer import Certificate, Peer
from kvmd.front.peers import Peers

ALICE = Peer(uid=1000, gid=1000, pid=1)


def test_identity_of_a_certificate_is_not_a_uid():
    assert Peer(0, 0, 0, certificate=Certificate("uid:0", 1, 4e9, "host:1")).identity == "cert:uid:0"


def test_lookup_wants_the_whole_string():
    peers = Peers()
    connection = peers.add(ALICE)
    assert peers.lookup(f"unix-abstract:{connection.token}") is connection
    for wrong in (connection.token, f"unix:{connection.token}", f"unix-abstract:{connection.token} ", ""):
        assert peers.lookup(wrong) is None


def test_callbacks_run_once_in_order_and_after_the_table_forgot():
    peers = Peers()
    connection = peers.add(ALICE)
    ran = []
    connection.on_close(lambda: ran.append(("first", len(peers), connection.closed)))
    connection.on_close(lambda: ran.append("second"))
    connection.close()
    connection.close()
    assert ran == [("first", 0, True), "second"]


def test_a_callback_given_late_runs_at_once():
    connection = Peers().add(ALICE)
    connection.close()
    ran = []
    connection.on_close(lambda: ran.append(1))
    assert ran == [1]


def test_a_callback_taken_back_does_not_run():
    connection = Peers().add(ALICE)
    ran = []

    def callback():
        ran.append(1)

    connection.on_close(callback)
    connection.forget(callback)
    connection.forget(callback)
    connection.close()
    assert ran == []


def test_a_callback_that_fails_keeps_no_other_from_running(caplog):
    connection = Peers().add(ALICE)
    ran = []
    connection.on_close(lambda: 1 / 0)
    connection.on_close(lambda: ran.append(1))
    connection.close()
    assert ran == [1]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_close_again():
    connection = Peers().add(ALICE)
    ran = []
    connection.on_close(lambda: (ran.append(1), connection.close()))
    connection.close()
    assert ran == [1]


@pytest.mark.parametrize("clock", [5, 3], ids=["still", "backwards"])
def test_opened_is_unique_whatever_the_clock_does(monkeypatch, clock):
    peers = Peers()
    monkeypatch.setattr("time.time_ns", lambda: 5)
    first = peers.add(ALICE).opened
    monkeypatch.setattr("time.time_ns", lambda: clock)
    assert peers.add(ALICE).opened > first
