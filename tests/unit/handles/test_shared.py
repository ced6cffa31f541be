"""Memory that a worker writes and others read: what the seals promise."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest

from kvmd.handles.shared import Shared

SIZE = 1 << 16


def test_after_the_seal_only_who_has_mapped_it_writes() -> None:
    shared = Shared("test", SIZE)
    writer, page = mmap.mmap(shared.fd, SIZE), shared.map(4096, 4096)
    shared.seal()
    writer[:5] = b"hello"
    page[:5] = b"there"
    assert writer[4096:4101] == b"there"
    reader = mmap.mmap(shared.fd, SIZE, access=mmap.ACCESS_READ)
    assert reader[:5] == b"hello"
    with pytest.raises(PermissionError):
        mmap.mmap(shared.fd, SIZE)
    with pytest.raises(PermissionError):
        os.pwrite(shared.fd, b"x", 0)
    again = os.open(f"/proc/self/fd/{shared.fd}", os.O_RDWR)  # a new open file of it is no way round
    with pytest.raises(PermissionError):
        mmap.mmap(again, SIZE)
    os.close(again)
    shared.close()


@pytest.mark.parametrize("size", [0, SIZE // 2, 2 * SIZE])
def test_its_size_stays(size: int) -> None:
    """Or a reader would meet SIGBUS."""
    shared = Shared("test", SIZE)
    with pytest.raises(PermissionError):
        os.ftruncate(shared.fd, size)
    shared.seal()
    with pytest.raises(PermissionError):
        fcntl.fcntl(shared.fd, fcntl.F_ADD_SEALS, 0)
    shared.close()


def test_closing_twice() -> None:
    before = len(os.listdir("/proc/self/fd"))
    shared = Shared("test", SIZE)
    assert not os.get_inheritable(shared.fd)
    shared.close()
    shared.close()
    assert len(os.listdir("/proc/self/fd")) == before
