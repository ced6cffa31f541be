from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import libkvm
from libkvm import kvm_close, kvm_open, kvm_openfiles
from libkvm.compat import connection
from unit.client import facade
from unit.client.fake import Fake, serving


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def target(fake: Fake, tmp_path, monkeypatch) -> Iterator[str]:
    """The target of a server with one fake image; the default target of this test."""
    with serving(str(tmp_path / "s"), fake) as name:
        monkeypatch.setenv("KVMD_TARGET", name)
        yield name
        for session in connection._sessions.values():
            session.close()
        connection._sessions.clear()


@pytest.fixture(params=[libkvm.connect, facade.connect], ids=["sync", "aio"])
def client(request, target: str) -> Iterator[libkvm.Client]:
    with request.param(target) as opened:
        yield opened


@pytest.fixture
def kernel(client: libkvm.Client) -> Iterator[libkvm.Kernel]:
    with client.open(corefile="/dumps/vmcore") as opened:
        yield opened


@pytest.fixture
def kd(target):
    """A handle of a dump whose hard errors stay on it."""
    opened = kvm_openfiles(None, "/dumps/vmcore", None, os.O_RDONLY, None)
    yield opened
    kvm_close(opened)


@pytest.fixture
def loud(target):
    """A handle of a dump whose hard errors go to stderr."""
    opened = kvm_open(None, "/dumps/vmcore", None, os.O_RDONLY, "prog")
    yield opened
    kvm_close(opened)


@pytest.fixture
def live(target):
    opened = kvm_open(None, None, None, os.O_RDONLY, "prog")
    yield opened
    kvm_close(opened)
