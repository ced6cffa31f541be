"""Direct reads: how they end, what becomes of what was given, and that they are the same as any others."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import libkvm
from daemon import Daemon, running_daemon
from direct import BANNER, POLICY, QEMU, ROOT, as_user, link, records, worker
from images import fixture
from kvmd.fast import COUNTS, ENDED, HALF, PAGE, SUFFIX, WINDOW
from libkvm.fast import joining
from procs import eventually


def test_close_takes_everything_back(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client:
        kernel = client.open(str(QEMU.path))
        assert kernel.read(BANNER, 5) == b"Linux"
        sock = socket.socket(fileno=os.dup(link(kernel)._sock.fileno()))
        kernel.close()
        assert sock.recv(1) == b""
        sock.close()
        with pytest.raises(libkvm.DescriptorError):
            kernel.read(BANNER, 5)


def test_the_end_of_the_connection_takes_everything_back(daemon: Daemon) -> None:
    client = libkvm.connect(daemon.target)
    kernel = client.open(str(QEMU.path))
    assert kernel.read(BANNER, 5) == b"Linux"
    sock = socket.socket(fileno=os.dup(link(kernel)._sock.fileno()))
    client.close()
    sock.settimeout(5)
    assert sock.recv(1) == b""
    sock.close()
    with pytest.raises(libkvm.DescriptorError):
        kernel.read(BANNER, 5)
    kernel.close()


def test_a_worker_that_dies(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    assert kernel.read(BANNER, 5) == b"Linux"
    pid = worker(daemon)
    os.kill(pid, signal.SIGKILL)

    def answer() -> str:
        try:
            kernel.read(BANNER, 5)
        except libkvm.UnavailableError as failure:
            return failure.reason.value
        return ""

    eventually(lambda: answer() == "WORKER_DIED", 5)


def test_a_daemon_that_stops(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    assert kernel.read(BANNER, 5) == b"Linux"
    daemon.stop()
    with pytest.raises(libkvm.UnavailableError):
        kernel.read(BANNER, 5)


READER = """
import time
with libkvm.connect(words[0]) as client, client.open(words[1]) as kernel:
    address, answer = int(words[2]), []
    answer.append(kernel.read(address, 5).decode())
    pages = kernel._direct.link(kernel._id).pages
    before = bytes(pages._bytes)
    print("ready", file=sys.stderr, flush=True)
    while os.path.exists(words[3]):
        time.sleep(0.01)
    for at in (address, address + 4096):
        try:
            answer.append(kernel.read(at, 5).decode("latin-1"))
        except libkvm.KvmError as failure:
            answer.append(failure.reason.value)
    # And whoever doesn't play by the rules: the mapping as it is.
    answer.append(bytes(pages._bytes) == before)
"""


@ROOT
def test_a_policy_that_takes_the_right_away(tmp_path: Path) -> None:
    """At once: no hit in the cache, no answer on the link, and no page that others read from then on."""
    settings, flag = tmp_path / "kvmd.toml", tmp_path / "flag"
    tmp_path.chmod(0o755)
    for each in tmp_path.parents:
        if str(each).startswith("/tmp/"):
            each.chmod(0o755)
    settings.write_text(POLICY + "[limits]\npage_cache = 8000000\n")
    flag.touch()
    command = [sys.executable, "-m", "kvmd", "--config", str(settings), "--listen", f"unix:{tmp_path}/sock"]
    log = (tmp_path / "log").open("w+")
    with log, subprocess.Popen([*command, "--dump-dir", str(QEMU.path.parent)], stderr=log) as process:
        said = tmp_path / "log"
        eventually(lambda: "ready on" in said.read_text(), 30)
        target, answers = f"unix:{tmp_path}/sock", {}

        def run(uid: int) -> None:
            answers[uid] = as_user(uid, READER, target, str(QEMU.path), str(BANNER), str(flag))

        threads = [threading.Thread(target=run, args=(uid,)) for uid in (4001, 4002)]
        for thread in threads:
            thread.start()
        eventually(lambda: said.read_text().count('"event": "grant"') == 2, 30)
        time.sleep(0.3)
        settings.write_text(settings.read_text().replace('"uid:4001", ', ""))
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "policy reloaded" in said.read_text(), 10)
        with libkvm.connect(target) as client, client.open(str(QEMU.path)) as kernel:
            for n in range(64):  # what others read from here on
                kernel.readv([(BANNER + n * PAGE, 8)])
        flag.unlink()
        for thread in threads:
            thread.join(60)
        process.terminate()
    assert answers[4001] == ["Linux", "POLICY_DENIED", "POLICY_DENIED", True]
    assert answers[4002][:2] == ["Linux", "Linux"]
    assert len(answers[4002][2]) == 5


def test_no_page_cache_if_none_is_wanted() -> None:
    with (
        running_daemon([QEMU.path.parent], "[limits]\npage_cache = 0\n") as daemon,
        libkvm.connect(daemon.target) as client,
        client.open(str(QEMU.path)) as kernel,
    ):
        assert kernel.read(BANNER, 5) == b"Linux"
        assert link(kernel).pages is None


def test_a_cache_too_small_for_all_of_it() -> None:
    """Pages come and go; what is read stays right."""
    with (
        running_daemon([QEMU.path.parent], f"[limits]\npage_cache = {3 << 20}\n") as daemon,
        libkvm.connect(daemon.target) as client,
        client.open(str(QEMU.path)) as kernel,
        client.open(str(QEMU.path)) as plain,
    ):
        plain._direct.drop()
        start = QEMU.truth["kallsyms"]["__start_rodata"]
        pages = [start + n * PAGE for n in range(2000)]
        expected = {at: result.data for at, result in zip(pages, plain.readv([(at, 64) for at in pages]), strict=True)}
        picked = random.Random(5)
        for _ in range(6000):
            at = picked.choice(pages)
            if expected[at]:
                assert kernel.read(at, 64) == expected[at]
        assert link(kernel).pages is not None
        assert any(expected.values())


def test_a_second_client_finds_what_the_first_has_read(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    start = QEMU.truth["kallsyms"]["__start_rodata"]
    data = kernel.read(start, 200_000)
    with libkvm.connect(daemon.target) as client, client.open(str(QEMU.path)) as other:
        mine = link(other)
        assert mine.pages is not None
        assert mine.pages.read(start - start % -PAGE, PAGE) == data[-start % PAGE :][:PAGE]
        assert other.read(start, 150_000) == data[:150_000]


def test_a_child_of_fork_has_no_link(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    assert kernel.read(BANNER, 5) == b"Linux"
    made, (reading, writing) = link(kernel), os.pipe()
    if (pid := os.fork()) == 0:
        try:
            kernel.read(BANNER, 5)
        except libkvm.KvmError as failure:
            os.write(writing, failure.reason.value.encode())
        kernel._direct.drop()
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    assert os.read(reading, 100) == b"NO_SUCH_DESCRIPTOR"
    os.close(reading)
    assert made.open  # the parent's is as it was
    assert kernel.read(BANNER, 5) == b"Linux"
    assert made.read(BANNER, 5, 1, 0, 5.0) == b"Linux"


def test_a_deadline(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    assert kernel.read(BANNER, 5) == b"Linux"
    pid = worker(daemon)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(libkvm.DeadlineError):
            kernel.read(BANNER, 5, physical=True, timeout=0.3)
        assert time.monotonic() - began < 3
    finally:
        os.kill(pid, signal.SIGCONT)
    assert kernel.read(BANNER, 5, timeout=20) == b"Linux"


def test_many_threads_on_one_link(kernel: libkvm.Kernel) -> None:
    start = QEMU.truth["kallsyms"]["__start_rodata"]
    whole = kernel.read(start, 300_000)
    wrong: list[object] = []

    def work(seed: int) -> None:
        picked = random.Random(seed)
        for _ in range(150):
            at, length = picked.randrange(200_000), picked.choice([1, 8, 5000, 20_000, 99_999])
            if kernel.read(start + at, length) != whole[at : at + length]:
                wrong.append((at, length))
            into = bytearray(length)
            kernel.readinto(start + at, into, timeout=20)
            if into != whole[at : at + length]:
                wrong.append((at, length, "into"))

    pages = link(kernel).pages
    link(kernel).pages = None  # all of it over the socket
    kernel._direct.cached = joining.nothing
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pages is not None
    assert not wrong
    assert link(kernel).open


def test_what_was_granted_is_given_back(daemon: Daemon) -> None:
    """Descriptors of the daemon and of this process, over many links."""

    def count() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd")), len(os.listdir("/proc/self/fd"))

    with libkvm.connect(daemon.target) as client:
        for turn in range(20):
            with client.open(str(QEMU.path)) as kernel:
                kernel.read(BANNER, 5)
            if turn == 4:
                before = count()
        assert count() == before


def test_grants_of_one_user_are_limited() -> None:
    """Those over the limit read by gRPC; who gives one back makes room."""
    with (
        running_daemon([QEMU.path.parent], "[limits]\ndirect_per_uid = 5\n") as daemon,
        libkvm.connect(daemon.target) as client,
    ):
        kernels = [client.open(str(QEMU.path)) for _ in range(8)]
        assert all(kernel.read(BANNER, 5) == b"Linux" for kernel in kernels)
        links = [kernel._direct.link(kernel._id) for kernel in kernels]
        assert all(links[:5])
        assert not any(links[5:])
        kernels[0].close()
        with client.open(str(QEMU.path)) as another:
            assert another._direct.link(another._id) is not None
        for kernel in kernels:
            kernel.close()


def test_much_that_is_read_directly_is_recorded_before_the_close() -> None:
    with (
        running_daemon([QEMU.path.parent], "[audit]\nread_bytes = 100000\n[limits]\npage_cache = 0\n") as daemon,
        libkvm.connect(daemon.target) as client,
        client.open(str(QEMU.path)) as kernel,
    ):
        kernel.read(QEMU.truth["kallsyms"]["__start_rodata"], 200_000)
        eventually(lambda: records(daemon, "read"), 10)
        [read] = records(daemon, "read")
        assert (read["calls"], read["bytes"]) == (1, 200_000)
        assert not records(daemon, "close")


def test_the_door_is_open_to_whom_the_public_socket_is() -> None:
    with running_daemon([QEMU.path.parent], "[listen]\nmode = 0o640\n") as daemon:
        public = os.stat(daemon.target.removeprefix("unix:"))
        door = os.stat(daemon.target.removeprefix("unix:") + SUFFIX)
        assert (door.st_mode, door.st_uid, door.st_gid) == (public.st_mode, public.st_uid, public.st_gid)
    assert not os.path.exists(daemon.target.removeprefix("unix:") + SUFFIX)


def test_the_window_ends_with_what_the_worker_has_counted() -> None:
    assert 2 * HALF + COUNTS.size <= ENDED < WINDOW


@pytest.mark.parametrize("form", ["qemu/vmcore.kdump", "kdump/vmcore.elfd"])
def test_the_same_bytes_and_the_same_errors(form: str) -> None:
    """Reads of every size and kind, at places that are there, left out, unmapped and beyond the dump."""
    path, picked = fixture(form).path, random.Random(11)
    symbols = fixture(form).truth["kallsyms"]
    places = [symbols["linux_banner"], symbols["_stext"], 0xFFFF888000000000, 0, (1 << 64) - 4096]

    def outcome(call: Any, *arguments: Any, **how: Any) -> Any:
        try:
            return call(*arguments, **how)
        except libkvm.KvmError as failure:
            return outcome_of(failure)

    with (
        running_daemon([path.parent]) as daemon,
        libkvm.connect(daemon.target) as client,
        client.open(str(path)) as kernel,
        client.open(str(path)) as plain,
    ):
        plain._direct.drop()
        for _ in range(80):
            address = min(picked.choice(places) + picked.randrange(32 << 20), (1 << 64) - 1)
            length = picked.choice([0, 1, 8, 4096, 20_000, 300_000, 1 << 20, (1 << 20) + 5])
            for how in ({}, {"physical": True}, {"pid": 1}):
                where = address % (160 << 20) if how else address
                assert outcome(kernel.read, where, length, **how) == outcome(plain.read, where, length, **how)
            into = [bytearray(length), bytearray(length)]
            assert outcome(kernel.readinto, address, into[0]) == outcome(plain.readinto, address, into[1])
            assert into[0] == into[1]
        ranges = [(picked.choice(places) + picked.randrange(16 << 20), picked.choice([0, 8, 5000])) for _ in range(300)]
        ranges = [(min(at, (1 << 64) - 1), length) for at, length in ranges]
        assert [(each.data, outcome_of(each.error)) for each in kernel.readv(ranges)] == [
            (each.data, outcome_of(each.error)) for each in plain.readv(ranges)
        ]
        assert kernel._direct.link(kernel._id) is not None


def outcome_of(error: libkvm.KvmError | None) -> Any:
    """All of an error but the number of the request."""
    return error and (type(error), error.reason, error.message, error.metadata | {"request": ""})
