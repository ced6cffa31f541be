"""The wiring: starts everything in order, reloads the policy, stops everything in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
from contextlib import AsyncExitStack
from functools import partial

from kvmd.access.audit import Audit
from kvmd.access.limits import Quotas
from kvmd.access.sinks import chosen
from kvmd.config import Config, ConfigError, load
from kvmd.direct import Direct
from kvmd.exposition import serving
from kvmd.fast import SUFFIX
from kvmd.front.door import Door
from kvmd.front.listener import Inherited, bind_tcp, bind_unix, tcp_name, unlink_socket
from kvmd.front.lock import InstanceLock, ListenError, check_path
from kvmd.front.peers import Peers
from kvmd.front.private import private_directory
from kvmd.front.refusals import Refusals
from kvmd.front.relay import Front
from kvmd.front.remote import Remote
from kvmd.grants import Grants
from kvmd.handles.pool import Pool
from kvmd.handles.table import Table
from kvmd.log import request_id
from kvmd.metrics import Metrics
from kvmd.notify import Notifier, feed, idle
from kvmd.opener import Opener
from kvmd.rpc.server import Server
from kvmd.sessions import Rules, Sessions

log = logging.getLogger(__name__)

GRACE = 2.0
"""How long calls under way may take to finish when the daemon is told to stop."""


class Daemon:
    """One running daemon.

    :param config_path: what SIGHUP reads again; None if there is no file.
    :param idle_exit: after how many seconds without clients to end; None: never.
    :param pool: closed by the caller.
    """

    def __init__(  # noqa: PLR0913 - what was there before it, by keyword
        self,
        config: Config,
        config_path: str | None,
        idle_exit: float | None,
        *,
        notify: Notifier,
        quotas: Quotas,
        pool: Pool,
    ) -> None:
        self._config, self._config_path, self._idle_exit = config, config_path, idle_exit
        self._notify = notify
        self._stop = asyncio.Event()
        limits = config.limits
        self._peers = Peers()
        self._quotas, self._pool = quotas, pool
        sinks = chosen(config.audit.file, config.audit.journal)
        self._audit = Audit(sinks, required=config.audit.required, request=request_id.get)
        self._table = table = Table(quotas["descriptors"])
        opener = Opener(config.dumps.directories, config.dumps.kernels)
        self._grants = Grants(quotas["direct"], limits.page_cache)
        self._sessions = Sessions(opener, table, self._pool, self._audit, self._grants, _rules(config), limits.lease)
        self._remote: Remote | None = None
        self._metrics = Metrics(quotas, self._pool, self._audit)

    async def run(self, inherited: list[Inherited]) -> None:
        """Serve until SIGTERM or SIGINT.

        :param inherited: the sockets of systemd's; none: the configuration says where to listen.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with AsyncExitStack() as stack:
            stack.callback(self._audit.close)
            await self._serve(inherited, stack)

    async def _serve(self, inherited: list[Inherited], stack: AsyncExitStack) -> None:
        path, limits = self._config.listen.unix, self._config.limits
        lock = stack.enter_context(InstanceLock(path))
        private = stack.enter_context(private_directory(path))
        stack.callback(self._grants.close)
        direct = Direct(self._sessions, self._grants)
        server = Server(self._peers, self._sessions, direct, self._metrics, limits)
        await server.start(private)
        stack.push_async_callback(server.stop, 0)
        front = self._front(private)
        stack.callback(self._sessions.end)
        stack.callback(front.close)
        sockets = [each.socket for each in inherited if not each.remote] or [self._bind(path, lock, stack)]
        doors = self._doors([each.socket for each in inherited if each.remote], front, stack)
        # On a socket of its own: in systemd's, clients may have been waiting in a long queue.
        front.serve(own := _own_socket(private))
        await server.self_test(own.getsockname())
        for sock in sockets:
            front.serve(sock)
        self._open_door(direct, sockets[0].getsockname(), lock, stack)
        if (admin := self._admin(stack)) is not None:
            front.serve(admin, admin=True)
        for sock in doors:
            front.serve(sock, greet=self._remote.take if self._remote else None)
        await stack.enter_async_context(serving(self._config.metrics, self._metrics))
        await server.serving(True)
        where = [f"unix:{path}", *(f"tcp {tcp_name(sock.getsockname())}" for sock in doors)]
        log.info("ready on %s", ", ".join(where))
        self._notify.ready("serving")
        chores = self._attend(server, front, sockets[0].getsockname())
        await self._stop.wait()
        for chore in chores:
            chore.cancel()
        log.info("stopping")
        self._notify.stopping()
        await server.serving(False)
        front.stop_accepting()
        await server.stop(GRACE)

    def _front(self, private: str) -> Front:
        return Front(
            self._peers, private, self._quotas["connections"], flow=self._quotas.flow,
            patience=self._config.limits.stall, on_connect=self._sessions.connected, own_pid=os.getpid(),
        )  # fmt: skip

    def _attend(self, server: Server, front: Front, path: str) -> list[asyncio.Task[None]]:
        """Feed the watchdog, and look whether anybody still is there.

        The self-check is a call through the public socket. From here to the stop its answer can only be SERVING.
        """
        tasks = [
            asyncio.ensure_future(feed(self._notify, partial(server.self_test, path))),
            asyncio.ensure_future(self._tally()),
        ]
        if self._idle_exit is not None:

            def leave() -> None:
                front.stop_accepting()  # who connects from here on waits in systemd's socket for the next daemon
                log.info("nobody has been here for %g s", self._idle_exit)
                self._stop.set()

            tasks.append(asyncio.ensure_future(idle(self._idle_exit, self._busy, leave)))
        if self._remote is not None:
            tasks.append(asyncio.ensure_future(self._remote.watch(self._peers)))
        return tasks

    async def _tally(self) -> None:
        """Take note of what is read directly, about as often as it is put on the record when it is much."""
        while True:
            await asyncio.sleep(1)
            self._sessions.tally()

    def _doors(self, inherited: list[socket.socket], front: Front, stack: AsyncExitStack) -> list[socket.socket]:
        """The TCP sockets, if there are any, and who minds them."""
        listen, limits = self._config.listen, self._config.limits
        doors = inherited or ([bind_tcp(*listen.tcp_address)] if listen.tcp else [])
        if not doors:
            return []
        if listen.tls is None:
            raise ListenError("a TCP socket was handed over, but [listen] has no tls_cert, tls_key and tls_client_ca")
        refusals = Refusals(self._refused)
        self._remote = Remote(
            listen.tls, front.admit, refusals, most=limits.handshakes, timeout=limits.handshake_timeout
        )
        stack.callback(self._remote.close)
        return doors

    def _refused(self, address: str, reason: str) -> None:
        self._audit.refused(address, reason)
        log.warning("refused %s: %s", address, reason)

    def _busy(self) -> bool:
        """Whether there is a client, or a descriptor of one that may come back; the self-check is no client."""
        return len(self._table) > 0 or any(each.peer.pid != os.getpid() for each in self._peers)

    def _bind(self, path: str, lock: InstanceLock, stack: AsyncExitStack) -> socket.socket:
        mode = self._config.listen.mode
        if mode is None:  # root's daemon leaves it to the policy who may do what; anybody else's serves its own uid
            mode = 0o666 if os.geteuid() == 0 else 0o600
        stack.callback(unlink_socket, path, lock)
        return bind_unix(path, mode, lock)

    def _open_door(self, direct: Direct, public: str, lock: InstanceLock, stack: AsyncExitStack) -> None:
        """Open the fast path's socket to those who may use the public one; all else is served where that can't be."""
        path = lock.path + SUFFIX
        try:
            like = os.stat(public)
            mode, gid = stat.S_IMODE(like.st_mode), like.st_gid
            listening = bind_unix(path, mode, lock, None if gid == os.getegid() else gid, socket.SOCK_SEQPACKET)
        except (ListenError, OSError) as failure:
            log.warning("there is no fast path: %s", failure)
            return
        stack.callback(unlink_socket, path, lock)
        stack.callback(Door(listening, direct.redeem).close)
        direct.door = path

    def _admin(self, stack: AsyncExitStack) -> socket.socket | None:
        """The admin service's socket, for root and the daemon's own user; None where there is to be none."""
        path = self._config.listen.admin_path
        if not path:
            return None
        try:
            check_path(path)
        except ListenError as wrong:
            if self._config.listen.admin is not None:
                raise
            log.warning("no admin service: %s", wrong)
            return None
        lock = stack.enter_context(InstanceLock(path))
        stack.callback(unlink_socket, path, lock)
        return bind_unix(path, 0o600, lock)

    def _reload(self) -> None:
        """Take the policy of the configuration file, or keep the one there is if the new one is wrong.

        Certificates, too, are read again.
        """
        self._notify.reloading()
        if self._remote is not None:
            self._remote.reread()
        try:
            rules = _rules(load(self._config_path))
        except ConfigError as wrong:
            log.error("not reloaded, the policy stays as it was: %s", wrong)
            self._notify.ready(f"serving by the old policy, the new one is wrong: {wrong}")
            return
        self._sessions.obey(rules)
        log.info("policy reloaded: %d rules", len(rules.policy.rules))
        self._notify.ready("serving")


def _rules(config: Config) -> Rules:
    return Rules(config.policy, config.live.writes, config.audit.read_bytes)


def _own_socket(private: str) -> socket.socket:
    """A listening socket beside grpc's private one, in the directory that nobody else can enter."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.path.join(os.path.dirname(private), "self"))
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock
