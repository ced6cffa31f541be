"""The rest of the Python face against a real daemon."""

from __future__ import annotations

import time

import pytest

import libkvm
from libkvm import Reason

TRANSPORTS = ["grpc", "aio", "tls", "tls-aio"]


def test_info(kernel, dump):
    info, truth = kernel.info, dump.truth

    assert (info.release, info.version, info.machine) == (truth["release"], truth["version"], truth["machine"])
    assert (info.nodename, info.banner) == (truth["nodename"], truth["banner"])
    assert (info.page_size, info.cpus_online) == (truth["page_size"], truth["cpus_online"])
    assert (info.live, info.symbols, info.types) == (False, "kallsyms", "btf")
    assert info.paging_levels == (5 if dump.name == "la57" else 4)
    assert len(info.load_average) == 3


def test_panics_tell_their_message(kernel, dump):
    if dump.name in {"kdump", "debian-6.1-panic"}:
        assert kernel.info.panic_message
    else:
        assert kernel.info.panic_message is None


def test_the_log_is_in_order_and_begins_with_the_banner_unless_that_was_overwritten(kernel, dump):
    records = kernel.log()

    assert records
    if records[0].sequence == 0:
        assert dump.truth["banner"] == records[dump.arm64].text  # which says first which CPU boots
    assert [record.sequence for record in records] == sorted(record.sequence for record in records)


def test_symbols(kernel, dump):
    table = kernel.symbols(["jiffies", "no_such_symbol"])

    assert table["jiffies"].value == dump.symbol("jiffies")
    assert table["jiffies"].source == ("code" if dump.arm64 else "kallsyms")
    assert table["no_such_symbol"] is None
    with pytest.raises(LookupError):
        kernel.symbol("no_such_symbol")


def test_names_outside_the_dump_directories_are_refused(client):
    with pytest.raises(libkvm.SourceError) as caught:
        client.open("/etc/passwd")

    assert caught.value.reason is Reason.PATH_OUTSIDE


@pytest.mark.parametrize("name", ["some-file", "empty"])
def test_what_is_no_dump_is_refused(client, odd, name):
    with pytest.raises(libkvm.FormatError):
        client.open(odd / name)


def test_a_dump_opens_by_its_name_alone(client, odd):
    with pytest.raises(libkvm.FormatError):
        client.open("some-file")


def test_links_are_refused(client, odd):
    with pytest.raises(libkvm.SourceError) as caught:
        client.open(odd / "link")

    assert caught.value.reason is Reason.PATH_SYMLINK


def test_a_descriptor_ends_with_its_connection_but_a_remote_one_has_a_lease(target, connect, one):
    with connect(target) as mine, connect(target) as other:
        kernel = mine.open(one.path)
        outlived = other.open(one.path)
        outlived._id = kernel._id  # not for others to know, but if they did
        mine.close()
        if target.startswith("dns:"):
            assert outlived.read(one.symbol("linux_banner"), 5) == b"Linux"
            return
        with pytest.raises(libkvm.DescriptorError):
            read_until(time.monotonic() + 10, outlived, one.symbol("jiffies"))


def read_until(deadline: float, kernel: libkvm.Kernel, address: int) -> None:
    while time.monotonic() < deadline:
        kernel.read(address, 8)


def test_two_kernels_at_once(client, one):
    with client.open(one.path) as first, client.open(one.path) as second:
        assert first.info == second.info
        first.close()
        assert second.info.release == one.truth["release"]


def test_a_dump_opens_for_writing_but_is_never_written(client, one):
    with client.open(one.path, write=True) as kernel:
        for data in (b"", b"x"):
            with pytest.raises(libkvm.UnsupportedError) as caught:
                kernel.write(one.symbol("jiffies"), data)
            assert caught.value.reason is Reason.WRITE_DEAD
        assert kernel.read(one.symbol("linux_banner"), 5) == b"Linux"
