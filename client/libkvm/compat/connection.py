"""The connection behind the C-style face: one for each target and process, made at first use."""

from __future__ import annotations

import atexit
import os
import threading

from libkvm.calls import A, Call, Q
from libkvm.errors import Reason, UnavailableError
from libkvm.session import Session, default_target
from libkvm.transports import transport

_lock = threading.Lock()
_sessions: dict[str, Session] = {}
_inherited: list[Session] = []


def shared(target: str | None = None) -> Session:
    """Answer the session of a target; None: of the default one."""
    target = target or default_target()
    with _lock:
        session = _sessions.get(target)
        if session is None or session.closed:
            session = _sessions[target] = Session(transport(target))
        return session


def ask(session: Session, call: Call[Q, A], request: Q) -> tuple[Session, A]:
    """Make a call that opens something, over a new connection if the old one's daemon went away.

    :return: the answer, and the session that it belongs to.
    """
    try:
        return session, session.unary(call, request, session.long_timeout)
    except UnavailableError as failure:
        if failure.reason is not Reason.UNREACHABLE:
            raise
    # Whatever was open over the lost connection is lost with it, so no handle is taken from its owner here.
    session.close()
    session = shared(session.target)
    return session, session.unary(call, request, session.long_timeout)


def _close_all() -> None:
    for session in _sessions.values():
        session.close()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    # Kept, since gRPC's objects of the parent must not be destroyed here.
    _inherited.extend(_sessions.values())
    _sessions.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
