"""What is left of a connection when its daemon goes and comes back."""

from __future__ import annotations

import pytest

import libkvm
from daemon import running_daemon
from libkvm import kvm_close, kvm_openfiles, kvm_read
from libkvm.compat import connection

TRANSPORTS = ["grpc"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    path = str(tmp_path / "kvmd.sock")
    monkeypatch.setenv("KVMD_TARGET", f"unix:{path}")
    yield path
    connection._sessions.pop(f"unix:{path}").close()


def test_a_new_daemon_serves_new_handles_and_no_old_ones(one, odd, place):
    address, buf = one.symbol("linux_banner"), bytearray(5)
    errbuf = libkvm.ErrBuf()
    folder = one.path.rpartition("/")[0]
    with running_daemon([folder], path=place):
        old = kvm_openfiles(None, one.path, None, 0, None)
        assert kvm_read(old, address, buf) == 5
    assert kvm_read(old, address, buf) == -1
    assert kvm_openfiles(None, one.path, None, 0, errbuf) is None
    assert str(errbuf).startswith(f"no kvmd answers on unix:{place}")
    with running_daemon([folder], path=place):
        assert kvm_read(old, address, buf) == -1
        new = kvm_openfiles(None, one.path, None, 0, None)
        assert kvm_read(new, address, buf) == 5
        assert buf == b"Linux"
        assert kvm_close(new) == 0


def test_stopping_while_a_client_is_connected_is_quick_and_clean(one, tmp_path):
    with running_daemon([one.path.rpartition("/")[0]]) as daemon, libkvm.connect(daemon.target) as client:
        kernel = client.open(one.path)
        assert daemon.stop() == 0
        with pytest.raises(libkvm.UnavailableError):
            kernel.read(one.symbol("linux_banner"), 5)
        kernel.close()
