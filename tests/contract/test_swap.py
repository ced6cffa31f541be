"""Memory that was swapped out, through every face: the third argument of kvm_open means something."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import pytest

import libkvm
from images import fixture
from libkvm import Reason
from unit.images.swap.test_older_dumps import pattern

PAGE = 4096
TRANSPORTS = ["grpc", "fast"]
UUID = slice(0x40C, 0x41C)  # of swap's header (include/linux/swap.h)
WITHHELD = "swapped out, no swap image given"


@pytest.fixture
def swapped(dump):
    """A handle with every swap area of the dump."""
    names = f"{dump.image('swap.img')}:{dump.image('swapfile.img')}"
    opened = libkvm.kvm_openfiles(None, dump.path, names, os.O_RDONLY, None)
    assert opened is not None
    yield opened
    libkvm.kvm_close(opened)


def processes(dump):
    return [each for each in dump.processes.values() if each.get("zoo") in ("swapped", "filed", "cached")]


def pages(dump, *names: str):
    found = [page for page in dump.truth["pages"] if page["swapped"] and page["what"] != "argenv"]
    return [page for page in found if page["name"] in names]


def test_kvm_getargv_and_kvm_getenvv(swapped, dump):
    for each in processes(dump):
        [process] = libkvm.kvm_getproc2(swapped, libkvm.KERN_PROC_PID, each["pid"])
        assert libkvm.kvm_getargv2(swapped, process) == each["argv"]
        assert libkvm.kvm_getenvv2(swapped, process) == each["env"]


def test_kvm_uread(swapped, dump):
    for page in pages(dump, "swapped", "filed", "cached"):
        buf = bytearray(PAGE)
        assert libkvm.kvm_uread(swapped, page["pid"], page["vaddr"], buf) == PAGE
        assert buf == pattern(page)


def test_kvm_uread_withheld(kd, dump):
    for page in pages(dump, "swapped", "filed"):
        buf = bytearray(b"\xaa" * PAGE)
        assert libkvm.kvm_uread(kd, page["pid"], page["vaddr"], buf) == 0
        assert libkvm.kvm_geterr(kd) == WITHHELD
        assert buf == b"\xaa" * PAGE


def test_arguments_withheld(kd, dump):
    for name in ("bed-swapped", "bed-filed"):
        [process] = libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_PID, dump.named(name))
        assert libkvm.kvm_getargv2(kd, process) is None
        assert libkvm.kvm_geterr(kd) == WITHHELD


def test_the_disk_that_the_swap_file_lies_on(client, dump):
    with client.open(dump.path, swapfile=[dump.image("swapfs.img")]) as kernel:
        for page in pages(dump, "filed"):
            assert kernel.read(page["vaddr"], PAGE, pid=page["pid"]) == pattern(page)
        page = pages(dump, "swapped")[0]
        with pytest.raises(libkvm.FaultError) as caught:
            kernel.read(page["vaddr"], PAGE, pid=page["pid"])
        assert caught.value.reason is Reason.NOT_PRESENT
        assert re.fullmatch(r"swap area 0 \(/dev/vda, UUID (unknown|[0-9a-f-]{36})\) not given", caught.value.message)
        assert caught.value.address == page["vaddr"]


@pytest.fixture
def another(dump):
    """The image of another run, with the UUID of this dump's partition, wherever it had another."""
    own = Path(dump.image("swap.img"))
    data = fixture("hole/swap.img" if "hole" not in str(dump.path) else "qemu/swap.img").path.read_bytes()
    with tempfile.NamedTemporaryFile(dir=own.parent, suffix=".img") as file:
        file.write(data[: UUID.start] + own.read_bytes()[UUID] + data[UUID.stop :])
        file.flush()
        yield file.name


def test_the_image_of_another_run_of_the_same_machine(client, dump, another):
    """It fits by all that its header says; what is on the processes' stacks shows it."""
    for any_swap in (False, True):
        with pytest.raises(libkvm.FormatError, match="at another time") as caught:
            client.open(dump.path, swapfile=[another], any_swap=any_swap)
        assert caught.value.reason is Reason.SWAP_FOREIGN


def test_any_swap_is_a_flag(dump):
    names = f"{dump.image('swap.img')}:{dump.image('swapfile.img')}"
    kd = libkvm.kvm_open(None, dump.path, names, os.O_RDONLY | libkvm.KVM_ANY_SWAP, None)
    page = pages(dump, "swapped")[0]
    buf = bytearray(PAGE)
    assert libkvm.kvm_uread(kd, page["pid"], page["vaddr"], buf) == PAGE
    assert buf == pattern(page)
    libkvm.kvm_close(kd)


def test_streams_and_batches(client, dump):
    with client.open(dump.path, swapfile=[dump.image("swap.img")]) as kernel:
        heap = [page for page in pages(dump, "swapped") if page["what"] == "heap"]
        ranges = [(page["vaddr"], PAGE) for page in heap] + [(pages(dump, "filed")[0]["vaddr"], 16)]
        *good, bad = kernel.readv(ranges, pid=heap[0]["pid"])
        assert [each.data for each in good] == list(map(pattern, heap))
        assert bad.error is not None
        whole = b"".join(kernel.stream(heap[0]["vaddr"], len(heap) * PAGE, pid=heap[0]["pid"]))
        assert whole == b"".join(map(pattern, heap))


def test_the_list_says_what_is_satisfied(client, dump):
    with client.open(dump.path, swapfile=[dump.image("swapfile.img")]) as kernel:
        partition, file = kernel.swap_areas()
        assert (len(partition.uuid) in (0, 36), partition.satisfied_by) == (True, "")
        assert (len(file.uuid), file.satisfied_by) == (36, dump.image("swapfile.img"))


def test_images_that_are_refused(client, one, tmp_path):
    for name, reason in (("vmcore", Reason.UNSUPPORTED_FORMAT), ("nothing", Reason.SOURCE_NOT_FOUND)):
        path = one.path if name == "vmcore" else os.path.join(os.path.dirname(one.path), name)
        with pytest.raises(libkvm.KvmError) as caught:
            client.open(one.path, swapfile=[path])
        assert caught.value.reason is reason
        assert path in caught.value.message
    errbuf = libkvm.ErrBuf()
    both = f"{one.image('swapfile.img')}:{one.image('swapfs.img')}"
    assert libkvm.kvm_openfiles(None, one.path, both, 0, errbuf) is None
    assert "the same swap area" in str(errbuf)


def test_the_running_kernel_takes_none(client, one):
    with pytest.raises(libkvm.RequestError, match="opened by the daemon"):
        client.open(swapfile=[one.image("swap.img")])


def test_too_many(client, one):
    with pytest.raises(libkvm.KvmError):
        client.open(one.path, swapfile=[one.image("swap.img")] * 33)


def test_kvmctl(one):
    from contract.test_kvmctl import document, kvmctl

    images = ["-M", one.path, "-W", f"{one.image('swap.img')}:{one.image('swapfile.img')}"]
    pid = one.named("bed-swapped")
    assert document("args", *images, str(pid))["args"] == one.processes[pid]["argv"]
    page = next(page for page in pages(one, "swapped") if page["what"] == "heap")
    read = document("read", *images, "--pid", str(page["pid"]), hex(page["vaddr"]), "4096")
    assert bytes.fromhex(read["data"]) == pattern(page)
    swap = document("swap", *images)["areas"]
    assert [area["satisfied_by"] for area in swap] == [one.image("swap.img"), one.image("swapfile.img")]
    assert all(area["uuid"] in kvmctl("swap", *images).stdout for area in swap)
    done = kvmctl("args", "-M", one.path, str(pid))
    assert (done.returncode, done.stderr) == (1, f"kvmctl: {WITHHELD}\n")
    assert json.loads(kvmctl("--json", "swap", "-M", one.path).stdout)["areas"][0]["satisfied_by"] == ""
