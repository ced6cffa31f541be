"""The wiring: starts everything in order, reloads the policy, stops everything in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack

from kvmd.access.audit import Audit
from kvmd.config import Config, ConfigError, load
from kvmd.front.listener import bind_unix, inherited_sockets, unlink_socket
from kvmd.front.lock import InstanceLock
from kvmd.front.peers import Peers
from kvmd.front.private import private_directory
from kvmd.front.relay import Front
from kvmd.handles.pool import Pool
from kvmd.handles.table import Table
from kvmd.opener import Opener
from kvmd.rpc.server import Server
from kvmd.sessions import Sessions

log = logging.getLogger(__name__)

GRACE = 2.0
"""How long calls under way may take to finish when the daemon is told to stop."""


class Daemon:
    """One running daemon.

    :param config_path: what SIGHUP reads again; None if there is no file.
    """

    def __init__(self, config: Config, config_path: str | None) -> None:
        self._config, self._config_path = config, config_path
        self._stop = asyncio.Event()
        limits = config.limits
        self._peers = Peers()
        self._audit = Audit(config.audit.file)
        self._pool = Pool(
            most=limits.workers, memory=limits.worker_memory, timeout=limits.worker_timeout, linger=limits.worker_linger
        )
        table = Table(most=limits.descriptors, most_per_owner=limits.descriptors_per_uid)
        opener = Opener(config.dumps.directories, config.dumps.kernels)
        self._sessions = Sessions(opener, config.policy, table, self._pool, self._audit)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        async with AsyncExitStack() as stack:
            stack.callback(self._audit.close)
            await self._serve(stack)

    async def _serve(self, stack: AsyncExitStack) -> None:
        path, limits = self._config.listen.unix, self._config.limits
        lock = stack.enter_context(InstanceLock(path))
        private = stack.enter_context(private_directory(path))
        self._pool.prepare()
        stack.push_async_callback(self._pool.close)
        server = Server(self._peers, self._sessions, limits)
        await server.start(private)
        stack.push_async_callback(server.stop, 0)
        front = Front(
            self._peers, private, patience=limits.stall,
            max_connections=limits.connections, max_per_uid=limits.connections_per_uid,
        )  # fmt: skip
        stack.callback(front.close)
        sockets = [each.socket for each in inherited_sockets()] or [self._bind(path, lock, stack)]
        for sock in sockets:
            front.serve(sock)
        # A client who comes before this has passed gets NO_PEER_IDENTITY if it would have failed.
        await server.self_test(sockets[0].getsockname())
        await server.serving(True)
        log.info("ready on unix:%s", path)
        await self._stop.wait()
        log.info("stopping")
        await server.serving(False)
        front.stop_accepting()
        await server.stop(GRACE)

    def _bind(self, path: str, lock: InstanceLock, stack: AsyncExitStack) -> socket.socket:
        mode = self._config.listen.mode
        if mode is None:  # root's daemon leaves it to the policy who may do what; anybody else's serves its own uid
            mode = 0o666 if os.geteuid() == 0 else 0o600
        stack.callback(unlink_socket, path, lock)
        return bind_unix(path, mode, lock)

    def _reload(self) -> None:
        """Take the policy of the configuration file, or keep the one there is if the new one is wrong."""
        try:
            policy = load(self._config_path).policy
        except ConfigError as wrong:
            log.error("not reloaded, the policy stays as it was: %s", wrong)
            return
        self._sessions.policy = policy
        log.info("policy reloaded: %d rules", len(policy.rules))


async def serve(config: Config, config_path: str | None) -> None:
    """Run a daemon to its end."""
    await Daemon(config, config_path).run()
