"""kvm_read(3) and the reads of the Python face."""

from __future__ import annotations

import threading

import pytest

import libkvm
from libkvm import Reason, kvm_close, kvm_geterr, kvm_open, kvm_read

PAGE = 4096
NOWHERE = 0x10  # no kernel maps its first page


def banner(dump) -> bytes:
    return dump.truth["banner"].encode() + b"\n\0"


def edge(kernel, dump) -> int:
    """The address after the kernel's own pages from which nothing can be read: where its mapping ends."""
    address = dump.data
    for _ in range(64):
        results = kernel.readv([(address + n * PAGE, 1) for n in range(4096)])
        for result in results:
            if result.error is not None:
                return address
            address += PAGE
    raise AssertionError("no edge")


def test_the_banner(kd, dump):
    buf = bytearray(len(banner(dump)))

    assert kvm_read(kd, dump.symbol("linux_banner"), buf) == len(buf)
    assert buf == banner(dump)


def test_reading_nothing_succeeds(kd):
    assert kvm_read(kd, NOWHERE, bytearray()) == 0


def test_an_address_that_is_not_mapped(kd, kernel):
    assert kvm_read(kd, NOWHERE, bytearray(8)) == -1
    assert kvm_geterr(kd) == f"_kvm_kvatop({NOWHERE:x})"
    with pytest.raises(libkvm.FaultError) as caught:
        kernel.read(NOWHERE, 8)
    assert caught.value.reason is Reason.NOT_MAPPED
    assert caught.value.address == NOWHERE
    assert caught.value.metadata["readable"] == "0"


def test_a_hard_error_goes_to_stderr(loud, capsys):
    assert kvm_read(loud, NOWHERE, bytearray(8)) == -1
    assert capsys.readouterr().err == f"prog: _kvm_kvatop({NOWHERE:x})\n"
    assert kvm_geterr(loud) == ""


def test_success_leaves_the_older_text(kd, dump):
    assert kvm_read(kd, NOWHERE, bytearray(8)) == -1
    text = kvm_geterr(kd)

    assert kvm_read(kd, dump.symbol("linux_banner"), bytearray(8)) == 8
    assert kvm_geterr(kd) == text


@pytest.mark.parametrize("size", [2 * PAGE, 2 << 20])
def test_a_read_over_the_edge_is_all_or_nothing_by_count(kd, kernel, dump, size):
    end = edge(kernel, dump)
    wanted = kernel.read(end - 100, 100)
    buf = bytearray(size)

    assert kvm_read(kd, end - 100, buf) == -1
    assert kvm_geterr(kd) == f"_kvm_kvatop({end:x})"
    assert buf[:100] == wanted
    with pytest.raises(libkvm.FaultError) as caught:
        kernel.read(end - 100, size)
    assert (caught.value.address, caught.value.metadata["readable"]) == (end, "100")


def test_left_out_pages_are_told_from_unmapped_ones(kernel, dump):
    with pytest.raises(libkvm.FaultError) as caught:
        kernel.read(dump.symbol("_stext"), 16)

    assert caught.value.reason is Reason.EXCLUDED


def test_every_way_of_reading_gives_the_same_bytes(kernel, dump):
    address = dump.data
    length = min(edge(kernel, dump) - address, 3 << 20)
    whole = kernel.read(address, length)
    buffer = bytearray(length)

    assert len(whole) == length
    assert kernel.readinto(address, buffer) == length
    assert buffer == whole
    assert b"".join(kernel.stream(address, length)) == whole
    assert b"".join(map(bytes, kernel.views(address, length))) == whole
    pieces = [(address + start, min(PAGE, length - start)) for start in range(0, length, PAGE)]
    assert b"".join(result.data for result in kernel.readv(pieces)) == whole
    assert dump.arm64 or whole.find(banner(dump)) == dump.symbol("linux_banner") - address


def test_physical_memory(kernel, dump):
    info = kernel.info
    if info.phys_base is None:
        pytest.skip("the image does not say where the kernel is")
    # x86-64: what the kernel's file links at __START_KERNEL_map + x is at physical x + phys_base.
    physical = dump.symbol("linux_banner") - 0xFFFFFFFF80000000 + info.phys_base

    assert kernel.read(physical, len(banner(dump)), physical=True) == banner(dump)


def test_threads_on_one_handle(one):
    kd = kvm_open(None, one.path, None, 0, None)
    wrong = []

    def work(turns: int) -> None:
        for _ in range(turns):
            buf = bytearray(len(banner(one)))
            if kvm_read(kd, one.symbol("linux_banner"), buf) != len(buf) or buf != banner(one):
                wrong.append(bytes(buf))
            if kvm_read(kd, NOWHERE, buf) != -1:
                wrong.append(b"nowhere")

    threads = [threading.Thread(target=work, args=(20,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert kvm_close(kd) == 0
