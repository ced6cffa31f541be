"""``kvmctl admin``: what an operator asks a running daemon, over the admin service's socket."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.message import Message

from kvmd.v1 import admin_pb2 as pb
from libkvm.calls import CLOSE_ONE, GET_STATS, LIST_CONNECTIONS, LIST_HANDLES, LIST_WORKERS, A, Call, Q
from libkvm.cli.command import Answer, Tool, number
from libkvm.cli.rows import aligned
from libkvm.errors import Reason, error
from libkvm.printable import printable
from libkvm.session import TIMEOUT, default_target
from libkvm.transports import transport


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", metavar="PATH", help="the admin socket; default: the target's, with -admin")
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    for name, (help_, run) in _COMMANDS.items():
        sub = commands.add_parser(name, help=help_, description=f"kvmctl admin {name}: {help_}.")
        sub.set_defaults(admin=run)
        if name == "close":
            which = sub.add_mutually_exclusive_group(required=True)
            which.add_argument("handle", nargs="?", metavar="TAG", help="a handle, as in handles and the audit record")
            which.add_argument("--connection", metavar="ID", type=number, help="a client, with all its handles")
            which.add_argument("--worker", metavar="PID", type=number, help="a worker process, with its handles")


def _target(options: argparse.Namespace) -> str:
    if options.socket is not None:
        return f"unix:{os.path.abspath(options.socket)}"
    target: str = options.target or default_target()
    if not target.startswith("unix:"):
        message = f"{target}: the admin service answers on its own Unix socket only; run kvmctl admin on that host"
        raise error(Reason.BAD_ARGUMENT, message, target=target)
    return target if target.endswith("-admin.sock") else os.path.splitext(target)[0] + "-admin.sock"


def _ask(options: argparse.Namespace, call: Call[Q, A], request: Q) -> A:
    connection = transport(_target(options))
    try:
        return connection.unary(call, request, options.timeout or TIMEOUT)
    finally:
        connection.close()


def _connections(options: argparse.Namespace) -> Answer:
    found = _ask(options, LIST_CONNECTIONS, pb.ListConnectionsRequest()).connections
    rows: list[tuple[str, ...]] = [("PEER", "PID", "HANDLES", "ID", "CGROUP", "EXE")]
    for each in found:
        pid = str(each.pid) if each.HasField("pid") else "-"
        cells = (each.peer, pid, str(each.handles), str(each.id), each.cgroup or "-", each.exe or "-")
        rows.append(_printable(cells))
    return Answer({"connections": _documents(found)}, aligned(rows))


def _handles(options: argparse.Namespace) -> Answer:
    found = _ask(options, LIST_HANDLES, pb.ListHandlesRequest()).handles
    rows: list[tuple[str, ...]] = [("TAG", "PEER", "WORKER", "AGE", "MODE", "IMAGE")]
    for each in found:
        cells = (each.tag, each.peer, str(each.worker), _age(each.since), "rw" if each.writable else "r", each.image)
        rows.append(_printable(cells))
    return Answer({"handles": _documents(found)}, aligned(rows))


def _workers(options: argparse.Namespace) -> Answer:
    found = _ask(options, LIST_WORKERS, pb.ListWorkersRequest()).workers
    rows: list[tuple[str, ...]] = [("PID", "PEER", "HANDLES", "AGE", "MIB", "CPU", "IMAGE")]
    for each in found:
        sizes = (f"{each.memory / (1 << 20):.0f}", f"{each.cpu:.1f}")
        cells = (str(each.pid), each.peer, str(each.handles), _age(each.since), *sizes, each.image or "-")
        rows.append(_printable(cells))
    return Answer({"workers": _documents(found)}, aligned(rows))


def _close(options: argparse.Namespace) -> Answer:
    request = pb.CloseOneRequest(handle=options.handle, connection=options.connection, worker=options.worker)
    _ask(options, CLOSE_ONE, request)
    return Answer({"closed": True}, ())


def _stats(options: argparse.Namespace) -> Answer:
    found = _ask(options, GET_STATS, pb.GetStatsRequest())
    counts = {key: getattr(found, key) for key in ("uptime", "audit_written", "audit_lost")}
    return Answer({**counts, "limits": _documents(found.limits), "calls": _documents(found.calls)}, _lines(found))


def _lines(stats: pb.GetStatsResponse) -> Iterator[str]:
    yield f"up {stats.uptime:.0f} s; audit records: {stats.audit_written} written, {stats.audit_lost} lost"
    yield ""
    limits: list[tuple[str, ...]] = [("USED", "MOST", "EACH", "REFUSED", "LIMIT")]
    limits += [(*map(str, (e.used, e.most, e.most_per_owner, e.refused)), e.name) for e in stats.limits]
    yield from aligned(limits)
    yield ""
    calls: list[tuple[str, ...]] = [("CALLS", "MEAN MS", "STATUS", "METHOD")]
    calls += [(str(e.count), f"{e.seconds / max(e.count, 1) * 1000:.1f}", e.status, e.method) for e in stats.calls]
    yield from aligned(calls)


def _documents(messages: Sequence[Message]) -> list[dict[str, object]]:
    return [{field.name: getattr(each, field.name) for field in each.DESCRIPTOR.fields} for each in messages]


def _printable(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(printable(cell) for cell in cells)


def _age(since: float) -> str:
    return f"{max(0, time.time() - since):.0f}s"


_COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], Answer]]] = {
    "connections": ("list clients", _connections),
    "handles": ("list open descriptors", _handles),
    "workers": ("list worker processes", _workers),
    "close": ("take a handle away, cut a client off, or end a worker", _close),
    "stats": ("show limits and calls", _stats),
}

TOOL = Tool("ask a running kvmd how it does", lambda options: options.admin(options), _arguments)
