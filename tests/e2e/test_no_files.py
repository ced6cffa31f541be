"""KVM_NO_FILES: what real processes of other users see of /proc through the daemon, and what not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from daemon import Daemon, running_daemon
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from kvmd.v1 import process_pb2
from procs import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")

LIMITS = "[limits]\nworker_linger = 0.5\n"
VERB = """
[[policy]]
subjects = ["uid:4001"]
images = ["live"]
verbs = ["environment"]
"""

CLIENT = """
import grpc, json, os, sys
from google.rpc import error_details_pb2, status_pb2
from kvmd.v1 import kvm_service_pb2 as pb, kvm_service_pb2_grpc as rpc
from kvmd.v1 import image_pb2, memory_pb2, process_pb2, symbol_pb2, system_pb2
import libkvm
from libkvm import *
words = json.loads(sys.argv[1])
uid = int(words[0])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)

def reason(call, *arguments):
    try:
        answer = call(*arguments)
        if not hasattr(answer, "DESCRIPTOR"):
            list(answer)
    except grpc.RpcError as failure:
        trailing = dict(failure.trailing_metadata())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        status.details[0].Unpack(info)
        return [info.reason, dict(info.metadata).get("call", "")]
    return "OK"

stub = rpc.KvmServiceStub(grpc.insecure_channel(words[1]))

def opened(**names):
    return stub.Open(pb.OpenRequest(flags=1 << 31, **names)).descriptor

def processes(id, **request):
    answers = stub.GetProcs(process_pb2.GetProcsRequest(descriptor=id, **request))
    return [process for answer in answers for process in answer.processes]

def strings(id, kind, pid):
    answer = stub.GetStrings(process_pb2.GetStringsRequest(descriptor=id, kind=kind, pid=pid))
    return [value.decode() for value in answer.strings.values]

def environment(id, pid):
    request = process_pb2.GetStringsRequest(descriptor=id, kind=2, pid=pid)
    refusal = reason(stub.GetStrings, request)
    return strings(id, 2, pid) if refusal == "OK" else refusal[0]

def pids():
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon whose policy names nobody."""
    with running_daemon(config=LIMITS) as running:
        yield running


@contextlib.contextmanager
def child(uid: int) -> Iterator[int]:
    """A process of a user's, with arguments and an environment of its own."""
    command = ["sleep", "60.0"]
    with subprocess.Popen(command, user=uid, group=uid, extra_groups=[], env={"SECRET": str(uid)}) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture(scope="module")
def children() -> Iterator[tuple[int, int]]:
    """Processes of two users'."""
    with child(4001) as one, child(4002) as two:
        yield one, two


def as_user(uid: int, target: str, code: str, *words: object) -> Any:
    """Run code as a user; its ``answer`` comes back."""
    program = f"{CLIENT}\n{code}\njson.dump(answer, sys.stdout)\n"
    arguments = json.dumps([uid, target, *words])
    run = subprocess.run([sys.executable, "-c", program, arguments], stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(run.stdout)


def test_every_process_is_there_and_is_described(daemon: Daemon, children: tuple[int, int]) -> None:
    code = """
id = opened()
before = pids()
found = {p.pid: p for p in processes(id, arguments=True)}
steady = before & pids()
own = found[words[2]]
answer = [sorted(steady - set(found)), sorted(found) == list(found), os.getpid() in found,
          [[v.decode() for v in found[pid].arguments.values] for pid in words[2:4]],
          [own.uid, own.euid, own.gid, own.egid, own.state, own.comm.decode(), own.num_threads, own.kernel_thread],
          [p.pid for p in processes(id, filter=6, argument=4002)], [p.pid for p in processes(id, filter=2, argument=1)],
          len(processes(id, threads=True)) > len(found)]
"""
    missing, ascending, itself, arguments, own, of_uid, init, threads = as_user(4001, daemon.target, code, *children)
    assert (missing, ascending, itself, threads) == ([], True, True, True)
    assert arguments == [["sleep", "60.0"]] * 2
    assert own == [4001, 4001, 4001, 4001, "S", "sleep", 1, False]
    assert children[1] in of_uid
    assert init == [1]


def test_environment_is_its_own_users(daemon: Daemon, children: tuple[int, int]) -> None:
    code = "id = opened()\nanswer = [environment(id, pid) for pid in (*words[2:4], 2, 1 << 30)]"
    assert as_user(4001, daemon.target, code, *children) == [
        ["SECRET=4001"],
        "POLICY_DENIED",
        "NO_USER_MEMORY",
        "NO_SUCH_PROCESS",
    ]
    assert as_user(4002, daemon.target, code, *children)[:2] == ["POLICY_DENIED", ["SECRET=4002"]]
    assert as_user(0, daemon.target, code, *children)[:2] == [["SECRET=4001"], ["SECRET=4002"]]


def test_refusal_names_the_way_out(daemon: Daemon, children: tuple[int, int]) -> None:
    code = """
try:
    stub.GetStrings(process_pb2.GetStringsRequest(descriptor=opened(), kind=2, pid=words[3]))
except grpc.RpcError as failure:
    answer = [failure.code().name, failure.details()]
"""
    status, message = as_user(4001, daemon.target, code, *children)
    assert status == "PERMISSION_DENIED"
    assert f"/proc/{children[1]}/environ: only its own user may read it" in message
    assert "verb `environment`" in message


def test_the_verb_lifts_it_and_nothing_else(children: tuple[int, int]) -> None:
    """The policy is asked at each call, so that what a reload takes away is gone."""
    code = """
id = opened()
files = stub.GetFiles(system_pb2.GetFilesRequest(descriptor=id, pid=words[3]))
answer = [[environment(id, pid) for pid in words[2:4]], sum(len(answer.files) for answer in files)]
"""
    with running_daemon(config=VERB) as running:
        assert as_user(4001, running.target, code, *children) == [[["SECRET=4001"], ["SECRET=4002"]], 0]
        assert as_user(4002, running.target, code, *children)[0] == ["POLICY_DENIED", ["SECRET=4002"]]


def test_a_reload_takes_the_verb_away(children: tuple[int, int]) -> None:
    code = """
id = opened()
answer = [environment(id, words[3])]
open(words[4], "w").close()
import time  # the test reloads the policy once the file is there, and removes it
while os.path.exists(words[4]): time.sleep(0.01)
answer += [environment(id, pid) for pid in words[2:4]]
answer.append(len(processes(id)) > 5)
id = opened()
answer += [environment(id, pid) for pid in words[2:4]]
"""
    with tempfile.TemporaryDirectory() as folder, running_daemon(config=VERB) as running:
        Path(folder).chmod(0o777)
        flag = Path(folder, "flag")
        config = Path(f"/proc/{running.process.pid}/cmdline").read_bytes().split(b"\0")[-2].decode()
        program = f"{CLIENT}\n{code}\njson.dump(answer, sys.stdout)\n"
        words = json.dumps([4001, running.target, *children, str(flag)])
        with subprocess.Popen([sys.executable, "-c", program, words], stdout=subprocess.PIPE) as client:
            eventually(flag.exists, 20)
            Path(config).write_text("")
            running.process.send_signal(1)
            eventually(lambda: any(b"reload" in line or b"policy" in line for line in running.log), 5)
            flag.unlink()
            answer = json.load(client.stdout)
    denied = "POLICY_DENIED"
    assert answer == [["SECRET=4002"], denied, denied, True, ["SECRET=4001"], denied]


def test_what_needs_kernel_memory_is_refused(daemon: Daemon) -> None:
    code = """
id = opened()
d = {"descriptor": id}
answer = {
    "Nlist": reason(stub.Nlist, symbol_pb2.NlistRequest(names=["jiffies"], **d)),
    "Read": reason(stub.Read, memory_pb2.ReadRequest(length=8, **d)),
    "user": reason(stub.Read, memory_pb2.ReadRequest(length=8, space=3, pid=1, **d)),
    "ReadStream": reason(stub.ReadStream, memory_pb2.ReadStreamRequest(length=8, **d)),
    "Write": reason(stub.Write, memory_pb2.WriteRequest(data=b"x", **d)),
    "WalkPages": reason(stub.WalkPages, memory_pb2.WalkPagesRequest(**d)),
    "GetLog": reason(stub.GetLog, image_pb2.GetLogRequest(**d)),
    "GetInfo": reason(stub.GetInfo, image_pb2.GetInfoRequest(**d)),
    "GetCpus": reason(stub.GetCpus, system_pb2.GetCpusRequest(**d)),
}
"""
    assert as_user(4001, daemon.target, code) == {
        "Nlist": ["NO_FILES", "kvm_nlist"],
        "Read": ["NO_FILES", "kvm_read"],
        "user": ["NO_FILES", "kvm_uread"],
        "ReadStream": ["NO_FILES", "kvm_read"],
        "Write": ["NO_FILES", "kvm_write"],
        "WalkPages": ["NO_FILES", "kvm_walk_pages"],
        "GetLog": ["NO_FILES", "the kernel's log"],
        "GetInfo": "OK",
        "GetCpus": "OK",
    }


def test_it_wins_over_all_other_checks(daemon: Daemon) -> None:
    """Over names that are too long, climb, or name nothing, swap areas, and every other flag."""
    code = """
names = dict(corefile="x" * 4000, execfile="../" * 9, swapfiles=["/nowhere", ""])
answer = [stub.Open(pb.OpenRequest(flags=(1 << 31) | more, **names)).kernel_name for more in (0, 1, 2, 64, 0x7FFFFFFF)]
answer.append(stub.OpenFiles(pb.OpenFilesRequest(open=pb.OpenRequest(flags=0xFFFFFFFF, **names))).errbuf)
"""
    assert as_user(4001, daemon.target, code) == [""] * 6


def test_the_c_style_face(daemon: Daemon, children: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMD_TARGET", daemon.target)
    code = """
err = ErrBuf()
kd = kvm_openfiles("x" * 5000, "y" * 5000, "z", KVM_NO_FILES | 1, err)
own = kvm_getproc2(kd, KERN_PROC_PID, words[2])[0]
other = kvm_getprocs(kd, KERN_PROC_PID, words[3])[0]
answer = [str(err), kvm_getkernelname(kd), own.pid, own.uid, other.euid,
          kvm_getargv2(kd, own), kvm_getargv2(kd, other), kvm_getenvv2(kd, own), kvm_getenvv2(kd, other),
          [lwp.pid for lwp in kvm_getlwps(kd, words[2])], len(kvm_getloadavg(kd)), len(kvm_getcptime(kd)) >= 5,
          kvm_getswapinfo(kd) is not None,
          kvm_nlist(kd, [Nlist("jiffies")]), kvm_geterr(kd), kvm_read(kd, 0, bytearray(8)), kvm_geterr(kd),
          kvm_write(kd, 0, b"x"), kvm_geterr(kd), kvm_close(kd)]
"""
    words = ["sleep", "60.0"]
    text = "kvm_open called with KVM_NO_FILES, can't use "
    assert as_user(4001, daemon.target, code, *children) == [
        *["", "", children[0], 4001, 4002, words, words, ["SECRET=4001"], None],
        *[[children[0]], 3, True, True],
        *[-1, "bad namelist", -1, f"{text}kvm_read", -1, f"{text}kvm_write", 0],
    ]


def opens(daemon: Daemon, began: int) -> list[tuple[str, str, int]]:
    """Peer, image and worker of each open on the record since."""
    records = [json.loads(line[7:]) for line in daemon.log[began:] if line.startswith(b"audit: ")]
    return [(record["peer"], record["image"], record["worker"]) for record in records if record["event"] == "open"]


def test_an_identity_has_a_worker_of_its_own(daemon: Daemon) -> None:
    """The same identity shares it; it runs with the client's ids, for it is the kernel that decides what is shown."""
    code = "id = opened()\nanswer = 0\nprint(file=sys.stderr, flush=True)\nsys.stdin.readline()"
    began = len(daemon.log)
    clients = []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with contextlib.ExitStack() as stack:
        for uid in (4001, 4002, 4001):
            program = [sys.executable, "-c", f"{CLIENT}\n{code}", json.dumps([uid, daemon.target])]
            clients.append(stack.enter_context(subprocess.Popen(program, **pipes)))
        for client in clients:
            assert client.stderr.readline() == b"\n"
        eventually(lambda: len(opens(daemon, began)) == 3, 5)
        found = opens(daemon, began)
        assert sorted(peer for peer, _, _ in found) == ["uid:4001", "uid:4001", "uid:4002"]
        assert {image for _, image, _ in found} == {"procfs"}
        workers = {peer: worker for peer, _, worker in found}
        assert len({(peer, worker) for peer, _, worker in found}) == len(workers) == 2
        for peer, worker in workers.items():
            status = Path(f"/proc/{worker}/status").read_text()
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert facts["Uid"].split() == facts["Gid"].split() == [peer.removeprefix("uid:")] * 4
            assert {facts[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
            assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Threads"]) == ("1", "2", "1")
        for client in clients:
            client.stdin.close()
    eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers.values()), 5)


PRIVATE = """
import ctypes, os, struct, sys
import kvmd.__main__, kvmd.daemon, kvmd.images.registry, grpc
libc = ctypes.CDLL(None)
os.setgroups([]); os.setresgid(4001, 4001, 4001)
libc.prctl(8, 1, 0, 0, 0); os.setresuid(4001, 4001, 4001)
# CAP_DAC_READ_SEARCH, for the interpreter that it starts its workers with may be root's alone.
assert not libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", 4, 4, 4, 0, 0, 0))
assert not libc.prctl(47, 2, 2, 0, 0)
sys.argv[0] = "kvmd"
kvmd.__main__.main()
"""


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[str]]:
    """A daemon that isn't root, which everybody may connect to."""

    @contextlib.contextmanager
    def start() -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:
            os.chown(folder, 4001, 4001)
            Path(folder).chmod(0o755)
            target = f"unix:{folder}/kvmd.sock"
            settings = Path(folder, "kvmd.toml")
            settings.write_text("[listen]\nmode = 0o666\n")
            options = ["--listen", target, "--config", str(settings)]
            process = subprocess.Popen([sys.executable, "-c", PRIVATE, *options], stderr=subprocess.PIPE)
            try:
                line = process.stderr.readline()
                assert line.startswith(b"kvmd: ready"), line + process.stderr.read()
                yield target
            finally:
                process.terminate()
                process.wait(30)
                process.stderr.close()

    return start


def test_a_daemon_that_is_not_root(private, children: tuple[int, int]) -> None:
    code = "id = opened()\nanswer = [environment(id, pid) for pid in words[2:4]]\nanswer.append(len(processes(id)) > 5)"
    with private() as target:
        assert as_user(4001, target, code, *children) == [["SECRET=4001"], "POLICY_DENIED", True]
        stranger = "answer = reason(stub.Open, pb.OpenRequest(flags=1 << 31))[0]"
        assert as_user(4002, target, stranger) == "POLICY_DENIED"


def test_they_are_counted_among_the_workers() -> None:
    """limits.workers bounds them, whoever asks: each identity takes one."""
    with running_daemon(config="[limits]\nworkers = 1\nworker_linger = 0\n") as running:
        stub = rpc.KvmServiceStub(grpc.insecure_channel(running.target))
        id_ = stub.Open(pb.OpenRequest(flags=1 << 31)).descriptor
        answer = as_user(4001, running.target, "answer = reason(stub.Open, pb.OpenRequest(flags=1 << 31))[0]")
        assert answer == "WORKER_LIMIT"
        assert next(iter(stub.GetProcs(process_pb2.GetProcsRequest(descriptor=id_)))).processes
        stub.Close(pb.CloseRequest(descriptor=id_))
