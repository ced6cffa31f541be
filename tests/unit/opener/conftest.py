"""A dump directory with something outside it, and an opener that is run with and without openat2."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from kvmd import opener as module
from kvmd.errors import KvmError
from kvmd.opener import Opener

DUMP = b"a dump"
SECRET = b"a secret"


@pytest.fixture(params=["openat2", "parts"])
def way(request, monkeypatch):
    """Every test of opening runs with openat2 and, as on a kernel before 5.6, without."""
    if request.param == "parts":

        def absent(*_args):
            raise OSError(errno.ENOSYS, "no openat2")

        monkeypatch.setattr(module, "_by_openat2", absent)
    return request.param


@pytest.fixture
def crash(tmp_path):
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "vmcore").write_bytes(DUMP)
    (tmp_path / "crash" / "host").mkdir()
    (tmp_path / "crash" / "host" / "vmcore").write_bytes(DUMP + b" of host")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    return tmp_path / "crash"


@pytest.fixture
def opener(crash):
    return Opener([str(crash)])


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """No test leaves a descriptor behind, whatever it provoked."""
    before = os.listdir("/proc/self/fd")
    yield
    # What other tests left to the garbage collector may go meanwhile; nothing may come.
    assert set(os.listdir("/proc/self/fd")) <= set(before)


@pytest.fixture
def content():
    """Read and close what was opened."""

    def read(opened):
        with opened:
            return os.read(opened.fd, 100)

    return read


@pytest.fixture
def reason():
    """Why an opener refuses a name."""

    def ask(opener, name):
        with pytest.raises(KvmError) as caught:
            opener.open_dump(str(name)).close()
        return caught.value.reason

    return ask
