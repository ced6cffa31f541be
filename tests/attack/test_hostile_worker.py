"""Code that has taken over a real worker, while it parses a dump, reaches nothing but that dump's clients.

The daemon is as an operator runs it: root's, or a user's own with ambient capabilities, as in systemd/kvmd.service.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import libkvm
from attempts import ATTEMPTS, Targets, program, told
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.worker.sandbox import worker_ids
from procs import descriptors, eventually, open_folder, workers

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TAKEOVER = Path(__file__).parent / "takeover"
HONEST = fixture("qemu/vmcore.kdump")
ROOT = os.geteuid() == 0
USER = 12345 if ROOT else os.geteuid()


class World(NamedTuple):
    """A daemon, what its workers might reach, and whether it is root's."""

    daemon: Daemon
    targets: Targets
    root: bool


@contextlib.contextmanager
def targets(folder: Path, uid: int) -> Iterator[Targets]:
    """Files, sockets and a process that any process of this user can reach."""
    (folder / "dumps").mkdir()
    folder.chmod(0o777)
    secret = folder / "secret"
    secret.write_text("everybody may read this")
    with contextlib.ExitStack() as stack:
        public, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        public.bind(f"{folder}/public")
        (folder / "public").chmod(0o666)
        abstract.bind(f"\0{folder}")
        for sock in (public, abstract):
            sock.listen()
        who = {"user": uid, "group": uid, "extra_groups": []} if ROOT else {}
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"], **who))
        stack.callback(victim.kill)
        yield Targets(str(secret), str(folder), victim.pid, f"{folder}/public", str(folder))
        assert victim.poll() is None, "the victim was reached"
        assert secret.read_text() == "everybody may read this"
        assert {path.name for path in folder.iterdir()} == {"secret", "public", "dumps"}


def taken_over(daemon: Daemon, dump: Path, code: str) -> list[str | int]:
    """Have a worker open a dump that runs this code in it; what the code leaves in ``answers``."""
    dump.write_text(f"#takeover\n{code}")
    dump.chmod(0o644)
    with libkvm.connect(daemon.target) as client, pytest.raises(libkvm.KvmError) as failure:
        client.open(corefile=dump)
    assert failure.value.message == "taken over", failure.value.message
    parts = sorted((key, value) for key, value in failure.value.metadata.items() if key.startswith("part"))
    return json.loads("".join(part for _, part in parts))


@pytest.fixture(scope="module", params=[pytest.param("root's", marks=as_root), "a user's"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    root = request.param == "root's"
    path = f"{os.environ.get('PYTHONPATH', '')}:{TAKEOVER}".lstrip(":")
    config = '[[policy]]\nsubjects = ["uid:0"]\nimages = ["dump:*"]\nverbs = ["*"]\n'
    with (
        open_folder() as folder,
        targets(folder, worker_ids()[0] if root else USER) as there,
        running_daemon(
            [folder / "dumps", HONEST.path.parent],
            config,
            user=None if root or not ROOT else USER,
            env={"PYTHONPATH": path},
        ) as daemon,
    ):
        yield World(daemon, there, root)


@pytest.fixture(scope="module")
def answers(world: World) -> dict[str, str]:
    """What became of every attempt, made by one worker while another one serves an honest client."""
    with libkvm.connect(world.daemon.target) as client, client.open(corefile=HONEST.path) as kernel:
        dump = Path(world.targets.folder, "dumps", "attempts")
        found = told(taken_over(world.daemon, dump, program(world.targets)))
        assert kernel.read(HONEST.truth["kallsyms"]["linux_banner"], 13) == b"Linux version"
    return found


@pytest.mark.parametrize("name", ATTEMPTS)
def test_refused(world: World, answers: dict[str, str], name: str) -> None:
    row = ATTEMPTS[name]
    assert answers[name] == (row.answer if world.root or not row.user else row.user)


def test_what_is_refused_there_passes_elsewhere() -> None:
    """The same attempts on the same targets by a free process: else the test above would say little."""
    names = [name for name, row in ATTEMPTS.items() if row.passes]
    become = f"os.setgroups([]); os.setresgid(*[{USER}] * 3); os.setresuid(*[{USER}] * 3)\n" if ROOT else ""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        there = stack.enter_context(targets(folder, USER))
        code = (
            "import ctypes, errno, json, os, socket, sys\n"
            + become
            + f"core = os.open({there.secret!r}, os.O_RDONLY); free = socket.socket(socket.AF_UNIX).detach()\n"
            + program(there, names)
            + "sys.stdout.write(json.dumps(answers))"
        )
        run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
        for name in ("x", "s", "f"):
            (folder / name).unlink()
        (folder / "y").rmdir()
    assert {name: answer for name, answer in told(json.loads(run.stdout), names).items() if answer != "passed"} == {}


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("raw(0x40000000 | 39)", "SIGSYS"),
        ("os.abort()", "SIGABRT"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os._exit(0)", "exit status 0"),
    ],
    ids=["calls of the x32 ABI", "abort", "a wild pointer", "exit"],
)
def test_its_death_is_its_own(world: World, code: str, ending: str) -> None:
    daemon, there, _ = world
    dump = Path(there.folder, "dumps", "death")
    with libkvm.connect(daemon.target) as client, client.open(corefile=HONEST.path) as kernel:
        with pytest.raises(AssertionError, match=ending):
            taken_over(daemon, dump, program(there, ()) + code)
        assert kernel.read(HONEST.truth["kallsyms"]["linux_banner"], 13) == b"Linux version"


def test_it_can_send_no_descriptor(world: World) -> None:
    """Neither to the daemon, which would take bytes and nothing beside them, nor to a client that reads directly."""
    daemon, there, _ = world
    before = descriptors(daemon.process.pid)
    code = (
        "import array, os, socket\n"
        "beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [core] * 200))]\n"
        "try: answers.append(socket.socket(fileno=os.dup(free)).sendmsg([b'x'], beside))\n"
        "except PermissionError: answers.append('EPERM')\n"
    )
    assert taken_over(daemon, Path(there.folder, "dumps", "sends"), program(there, ()) + code) == ["EPERM"]
    eventually(lambda: descriptors(daemon.process.pid) <= before, 5)


def test_threads_and_memory_end(world: World) -> None:
    """It can use up what is its own: its memory and descriptors, and no more threads than workers may have together."""
    daemon, there, _ = world
    code = (
        "import resource\n"
        "try: bytearray(8 << 30); answers.append('memory')\n"
        "except MemoryError: answers.append('MemoryError')\n"
        "fds = 0\n"
        "while isinstance(fd := raw(32, core), int): fds += 1\n"
        "answers += [fd, str(fds < 1024)]\n"
        "for name in ('CORE', 'FSIZE', 'MEMLOCK', 'MSGQUEUE'):\n"
        "    answers.append(str(resource.getrlimit(getattr(resource, 'RLIMIT_' + name))))\n"
    )
    found = taken_over(daemon, Path(there.folder, "dumps", "uses"), program(there, ()) + code)
    assert found == ["MemoryError", "EMFILE", "True", *["(0, 0)"] * 4]
    eventually(lambda: len(workers(daemon.process.pid)) >= 1, 5)
