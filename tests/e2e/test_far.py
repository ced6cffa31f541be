"""A daemon that is far away: reads one after the other cost few calls, and compressed pages are the same."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import libkvm
from bench.far import Relay, delayed
from daemon import Daemon
from images import fixture
from libkvm import Reason
from remote import BANNER, IMAGE, Site, port_of, remote_daemon

DELAY = 0.03
KALLSYMS = IMAGE.truth["kallsyms"]
START = KALLSYMS["init_task"] & -4096
KERNEL_MAP = 0xFFFFFFFF80000000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def daemon(site: Site) -> Iterator[Daemon]:
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, _):
        yield daemon


@pytest.fixture
def far(daemon: Daemon) -> Iterator[Relay]:
    with delayed(port_of(daemon), DELAY) as relay:
        yield relay


@pytest.fixture
def near(daemon: Daemon) -> Iterator[libkvm.Kernel]:
    with libkvm.connect(daemon.target) as client, client.open(str(IMAGE.path)) as kernel:
        yield kernel


def readable(near: libkvm.Kernel) -> int:
    """How many bytes there are from the start on."""
    (found,) = near.readv([(START, 1 << 20)])
    assert len(found.data) > 100_000
    return len(found.data)


def target(relay: Relay) -> str:
    return f"dns:///localhost:{relay.port}"


@pytest.mark.parametrize("physical", [False, True])
def test_reads_one_after_the_other_do_not_cost_a_call_each(
    site: Site, far: Relay, near: libkvm.Kernel, physical: bool
) -> None:
    start = START if not physical else START - KERNEL_MAP + (near.info.phys_base or 0)
    count, size = 500, 128
    with site.connect(target(far)) as client, client.open(str(IMAGE.path)) as kernel:
        kernel.read(BANNER, 8)
        began = time.monotonic()
        found = [kernel.read(start + at, size, physical=physical) for at in range(0, count * size, size)]
        took = time.monotonic() - began
    assert b"".join(found) == near.read(start, count * size, physical=physical)
    assert took < count * 2 * DELAY / 10


def test_errors_are_the_same_where_something_was_read_ahead(site: Site, far: Relay, near: libkvm.Kernel) -> None:
    """To the end of what is in the dump, in steps that do not divide it."""
    edge = START + readable(near)
    start = edge - 40 * 100 - 33
    with site.connect(target(far)) as client, client.open(str(IMAGE.path)) as kernel:
        seen: list[bytes | tuple[str, int, str]] = []
        for at in range(start, start + 60 * 100, 100):
            try:
                seen.append(kernel.read(at, 100))
            except libkvm.FaultError as e:
                seen.append((e.reason, e.address, e.metadata["readable"]))
                assert e.reason is Reason.EXCLUDED
    expected: list[bytes | tuple[str, int, str]] = []
    for at in range(start, start + 60 * 100, 100):
        try:
            expected.append(near.read(at, 100))
        except libkvm.FaultError as e:
            expected.append((e.reason, e.address, e.metadata["readable"]))
    assert seen == expected


def test_a_closed_kernel_serves_nothing_that_it_read_ahead(site: Site, far: Relay) -> None:
    with site.connect(target(far)) as client:
        kernel = client.open(str(IMAGE.path))
        for at in range(0, 1024, 64):
            kernel.read(START + at, 64)
        kernel.close()
        with pytest.raises(libkvm.DescriptorError):
            kernel.read(START + 1024, 64)
        other = client.open(str(IMAGE.path))
        for at in range(0, 1024, 64):
            other.read(START + at, 64)
    with pytest.raises(libkvm.DescriptorError):
        other.read(START + 1024, 64)


def test_compressed_memory_is_the_same_and_shorter(site: Site, far: Relay, near: libkvm.Kernel) -> None:
    whole = readable(near)
    ranges = [(START + at, 10_000) for at in range(0, whole - 10_000, 10_000)]
    plain = near.read(START, whole)
    with site.connect(target(far), compress=True) as client, client.open(str(IMAGE.path)) as kernel:
        before = far.received
        assert kernel.read(START, whole) == plain
        assert b"".join(result.data for result in kernel.readv(ranges)) == plain[: 10_000 * len(ranges)]
        assert b"".join(kernel.stream(START, whole)) == plain
        buffer = bytearray(whole)
        assert kernel.readinto(START, buffer) == len(buffer)
        assert buffer == plain
        assert far.received - before < 2 * len(plain)
        with pytest.raises(libkvm.FaultError):
            kernel.read(0x10, 4096)
        cut = kernel.readv([(0x10, 4096)])[0]
        assert (cut.data, cut.error.reason) == (b"", Reason.NOT_MAPPED)


def test_compression_takes_a_package(site: Site, far: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(libkvm.UnsupportedError, match=r"libkvm\[zstd\]"):
        site.connect(target(far), compress=True)


def test_nothing_is_read_ahead_on_the_same_host(near: libkvm.Kernel) -> None:
    assert near._ahead is None
    assert fixture("qemu/vmcore.kdump").path == Path(IMAGE.path)
