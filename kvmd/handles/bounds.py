"""What a worker may use, and whose rights it has."""

from __future__ import annotations

import os
from typing import NamedTuple

from kvmd import syscalls

_CAN_BECOME = 1 << 6 | 1 << 7  # CAP_SETGID, CAP_SETUID


class RunAs(NamedTuple):
    """A user's rights: user id, group id, supplementary groups.

    :ivar environments: whether the worker may open other users' environments too.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    environments: bool = False

    def encode(self) -> str:
        """As the worker's argument ``uid:gid:group,group[:environments]``."""
        words = f"{self.uid}:{self.gid}:{','.join(map(str, self.groups))}"
        return f"{words}:environments" if self.environments else words

    @property
    def possible(self) -> bool:
        """Whether a worker of this daemon's can take these rights: any with CAP_SETUID, else the daemon's own.

        Root may have those of the daemon's user: it can become that user without our help.
        """
        may_become = syscalls.capabilities()[0] & _CAN_BECOME == _CAN_BECOME
        return may_become or self.uid in (0, os.geteuid())


class Bounds(NamedTuple):
    """What a worker may use.

    :ivar memory: bytes of its own memory.
    :ivar cpu: seconds of processor time, in all its life.
    :ivar patience: how many seconds one step may take before the process is killed.
    :ivar helpers: how many processes it may have beside its own, for long reads of packed dumps.
    """

    memory: int
    cpu: int
    patience: float
    helpers: int = 0
