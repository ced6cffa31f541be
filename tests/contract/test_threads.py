"""A close during a read, and threads on handles of their own."""

from __future__ import annotations

import threading
import time

import pytest

import libkvm
from libkvm import kvm_close, kvm_geterr, kvm_openfiles, kvm_read


@pytest.mark.parametrize("delay", [0, 0.01, 0.1])
def test_a_close_during_reads_is_safe(one, delay):
    kd = kvm_openfiles(None, one.path, None, 0, None)
    address = one.symbol("linux_banner")
    outcomes: list[object] = []

    def work() -> None:
        while True:
            buf = bytearray(5)
            count = kvm_read(kd, address, buf)
            if count == -1:
                outcomes.append(kvm_geterr(kd))
                return
            if (count, buf) != (5, b"Linux"):
                outcomes.append((count, bytes(buf)))
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(delay)
    assert kvm_close(kd) == 0
    for thread in threads:
        thread.join(30)

    assert outcomes == ["Bad file descriptor"] * 4


def test_a_close_during_a_stream_ends_it_with_an_error_or_whole(client, one):
    kernel = client.open(one.path)
    walk = kernel.pages()
    next(walk)
    kernel.close()
    try:
        assert sum(1 for _ in walk) > 0
    except libkvm.KvmError as failure:
        assert isinstance(failure, libkvm.DescriptorError | libkvm.CancelledError | libkvm.UnavailableError)
    with pytest.raises(libkvm.DescriptorError):
        next(iter(kernel.pages()))


def test_handles_of_many_threads(one):
    wrong = []

    def work() -> None:
        for _ in range(5):
            kd = kvm_openfiles(None, one.path, None, 0, None)
            buf = bytearray(5)
            if kvm_read(kd, one.symbol("linux_banner"), buf) != 5 or buf != b"Linux" or kvm_close(kd) != 0:
                wrong.append(kvm_geterr(kd))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
