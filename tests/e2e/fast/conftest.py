"""A daemon and an image that is read directly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import libkvm
from daemon import Daemon, running_daemon
from direct import POLICY, QEMU


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running_daemon([QEMU.path.parent], POLICY) as running:
        yield running


@pytest.fixture
def kernel(daemon: Daemon) -> Iterator[libkvm.Kernel]:
    with libkvm.connect(daemon.target) as client, client.open(str(QEMU.path)) as opened:
        yield opened
