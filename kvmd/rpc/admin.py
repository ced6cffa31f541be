"""AdminService: what an operator sees of the daemon, and may end. The guard lets it be asked on its own socket only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from kvmd.access.audit import tag
from kvmd.errors import KvmError, Reason, error
from kvmd.front.peers import Connection, Peers
from kvmd.handles.pool import Entry
from kvmd.metrics import Metrics
from kvmd.rpc.interceptor import Context, Handler, caller
from kvmd.rpc.validate import parse
from kvmd.sessions import Sessions
from kvmd.v1 import admin_pb2 as pb

NAME = "kvmd.v1.AdminService"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class AdminService:
    """The servicer; it takes and gives bytes, as KvmService does."""

    def __init__(self, peers: Peers, sessions: Sessions, metrics: Metrics) -> None:
        self._peers, self._sessions, self._metrics = peers, sessions, metrics

    async def list_connections(self, raw: bytes, context: Context) -> bytes:
        """List clients."""
        parse(pb.ListConnectionsRequest, raw)
        held = Counter(id(descriptor.connection) for descriptor in self._sessions)
        records = [_connection(each, held[id(each)]) for each in self._peers if each.peer.pid != os.getpid()]
        return pb.ListConnectionsResponse(connections=records).SerializeToString()

    async def list_handles(self, raw: bytes, context: Context) -> bytes:
        """List descriptors."""
        parse(pb.ListHandlesRequest, raw)
        records = [
            pb.HandleRecord(
                tag=tag(each.id), peer=each.owner, image=each.image, writable=each.writable, since=each.since,
                connection=each.connection.opened, worker=each.entry.worker.pid,
            )
            for each in self._sessions
        ]  # fmt: skip
        return pb.ListHandlesResponse(handles=records).SerializeToString()

    async def list_workers(self, raw: bytes, context: Context) -> bytes:
        """List workers of open images."""
        parse(pb.ListWorkersRequest, raw)
        images = {id(each.entry): each.image for each in self._sessions}
        records = [_worker(each, images.get(id(each), "")) for each in self._metrics.pool.entries()]
        return pb.ListWorkersResponse(workers=records).SerializeToString()

    async def close_one(self, raw: bytes, context: Context) -> bytes:
        """End a descriptor, a connection or a worker."""
        request = parse(pb.CloseOneRequest, raw)
        which = request.WhichOneof("which")
        match which:
            case "handle":
                done = self._sessions.take_away(request.handle)
            case "connection":
                done = self._cut(request.connection)
            case "worker":
                done = self._end(request.worker)
            case _:
                raise error(Reason.BAD_ARGUMENT, "CloseOneRequest: names neither handle nor connection nor worker")
        if not done:
            raise error(Reason.NO_SUCH_DESCRIPTOR, "there is no such handle, connection or worker (any more)")
        self._sessions.note("admin", caller.get(), closed=which, name=getattr(request, which))
        return pb.CloseOneResponse().SerializeToString()

    def _cut(self, opened: int) -> bool:
        found = next((each for each in self._peers if each.opened == opened), None)
        if found is not None:
            found.close()
        return found is not None

    def _end(self, pid: int) -> bool:
        found = next((each for each in self._metrics.pool.entries() if each.worker.pid == pid), None)
        if found is not None:
            found.worker.kill(_ended())
        return found is not None

    async def get_stats(self, raw: bytes, context: Context) -> bytes:
        """Read counters and limits."""
        parse(pb.GetStatsRequest, raw)
        metrics = self._metrics
        limits = [
            pb.LimitRecord(
                name=quota.name, used=quota.used, most=quota.most, most_per_owner=quota.most_per_owner,
                refused=quota.refused,
            )
            for quota in metrics.quotas.all.values()
        ]  # fmt: skip
        rate, flow = metrics.quotas.rate, metrics.quotas.flow
        limits += [
            pb.LimitRecord(name=rate.name, most=rate.most, most_per_owner=rate.most_per_owner, refused=rate.refused),
            pb.LimitRecord(name=flow.name, most_per_owner=flow.most_per_owner, refused=flow.waits),
        ]
        calls = [
            pb.CallRecord(method=method, status=status, count=each.count, seconds=each.seconds)
            for (method, status), each in sorted(metrics.calls.items())
        ]
        audit = metrics.audit
        return pb.GetStatsResponse(
            limits=limits, calls=calls, uptime=metrics.uptime, audit_written=audit.written, audit_lost=audit.lost
        ).SerializeToString()

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods, for grpc's server."""
        methods: dict[str, Callable[[bytes, Context], Awaitable[bytes]]] = {
            "ListConnections": self.list_connections,
            "ListHandles": self.list_handles,
            "ListWorkers": self.list_workers,
            "CloseOne": self.close_one,
            "GetStats": self.get_stats,
        }
        handlers: dict[str, Handler] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(NAME, handlers)


def _connection(connection: Connection, handles: int) -> pb.ConnectionRecord:
    peer = connection.peer
    facts: dict[str, Any] = {"exe": peer.exe, "cgroup": peer.cgroup}
    if peer.cert is None:
        facts |= {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid}
    known = {key: value for key, value in facts.items() if value is not None}
    return pb.ConnectionRecord(
        id=connection.opened, peer=peer.identity, handles=handles, admin=connection.admin, **known
    )


def _worker(entry: Entry, image: str) -> pb.WorkerRecord:
    pid = entry.worker.pid
    memory, cpu = _usage(pid)
    return pb.WorkerRecord(
        pid=pid, peer=entry.owner, image=image, handles=entry.users, since=entry.since, memory=memory, cpu=cpu
    )


def _usage(pid: int) -> tuple[int, float]:
    """Resident bytes and processor seconds of a process (proc_pid_stat(5), fields 14, 15 and 24)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read(4096).rpartition(b")")[2].split()
        return int(words[21]) * _PAGE, (int(words[11]) + int(words[12])) / _TICKS
    except (OSError, ValueError, IndexError):  # it ended meanwhile
        return 0, 0.0


def _ended() -> KvmError:
    return error(Reason.WORKER_DIED, "the image's worker process was ended by the operator; open the image again")
