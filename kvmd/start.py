"""The start of a daemon: a worker comes first, for it imports for as long as the daemon does, and meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging

from kvmd.access.limits import Quotas
from kvmd.config import Config
from kvmd.front.listener import inherited_sockets
from kvmd.handles.bounds import Bounds
from kvmd.handles.indexes import Indexes
from kvmd.handles.pool import Pool
from kvmd.notify import Notifier

log = logging.getLogger(__name__)


async def serve(config: Config, config_path: str | None, idle_exit: float | None = None) -> None:
    """Run a daemon to its end; the arguments are :class:`kvmd.daemon.Daemon`'s.

    :raises ListenError, OSError, RuntimeError: it can't serve.
    """
    inherited, notify = inherited_sockets(), Notifier()  # first of all: no worker sees LISTEN_FDS, or NOTIFY_SOCKET
    limits, quotas = config.limits, Quotas(config.limits)
    bounds = Bounds(limits.worker_memory, limits.worker_cpu, limits.worker_timeout, limits.worker_helpers)
    pool = Pool(quotas["workers"], bounds, linger=limits.worker_linger, indexes=_indexes(config))
    try:
        pool.prepare()
        await asyncio.sleep(0)  # in which its process is made
        from kvmd.daemon import Daemon  # noqa: PLC0415 - grpc, and most of what the daemon is made of

        gc.freeze()
        gc.enable()
        await Daemon(config, config_path, idle_exit, notify=notify, quotas=quotas, pool=pool).run(inherited)
    finally:
        await pool.close()


def _indexes(config: Config) -> Indexes | None:
    """Where indexes of kernels are kept; what can't be kept is found out anew each time."""
    if not config.cache.path:
        return None
    try:
        return Indexes(config.cache.path, config.cache.bytes)
    except OSError as failure:
        log.warning("nothing is kept of kernels' builds: %s", failure)
        return None
