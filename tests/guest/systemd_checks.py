"""Checks of kvmd as a systemd service, as root in a guest whose PID 1 is systemd; see ``run``.

    systemd_checks.py SOURCE WHEELS [CHECK...]

SOURCE is a checkout, WHEELS a directory with kvmd's wheel and what it depends on: the first check installs from there,
offline. Clients are ordinary users. One function a check, in order: each leaves the service as the next one needs it.
"""

from __future__ import annotations

import grp
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE, WHEELS = Path(sys.argv[1]), Path(sys.argv[2])
PYTHON = "/usr/lib/kvmd/current/bin/python"
CONFIG = Path("/etc/kvmd/kvmd.toml")
DROP_IN = Path("/run/systemd/system/kvmd.service.d")
ACTIVATION = 90.0  # an emulator is ten to thirty times slower
RULES = """
[[policy]]
subjects = ["group:kvmd"]
images = ["live", "live:mem", "dump:/var/crash/*"]
verbs = ["info", "symbols", "read", "processes", "arguments", "environment", "log"]
"""
# What a client runs: the answer, or the reason it has none. A daemon that starts is waited for.
CLIENT = """
import sys, time, libkvm
def ask():
    with libkvm.connect(timeout=60, long_timeout=60) as client, client.open(**OPEN) as kernel:
        WORK
end = time.monotonic() + PATIENCE
while True:
    try:
        ask()
    except libkvm.UnavailableError as failure:
        if time.monotonic() < end: continue
        print(failure.reason.value, failure.message)
    except libkvm.KvmError as failure:
        print(failure.reason.value, failure.message)
    break
"""
READ = "print('OK', kernel.read(kernel.symbol('linux_banner').value, 13))"


def run(*words: str, good: bool = True, **more: object) -> str:
    """A command's output, standard error included; it must succeed if ``good``."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, **more)
    assert done.returncode == 0 or not good, f"{' '.join(words)}: {done.returncode}\n{done.stdout}"
    return done.stdout.strip()


def show(name: str, unit: str = "kvmd.service") -> str:
    """A property of a unit."""
    return run("systemctl", "show", "-P", name, unit)


def until(what: Callable[[], bool], seconds: float = ACTIVATION) -> float:
    """How long it took until something was so."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"not so after {seconds} s\n{journal()}"
        time.sleep(0.02)
    return time.monotonic() - began


def journal(lines: int = 25) -> str:
    """The end of the service's log."""
    return run("journalctl", "--no-pager", "-n", str(lines), "-u", "kvmd.service", "-u", "kvmd-dumps.service")


def client(user: str, work: str = READ, patience: float = ACTIVATION, **arguments: object) -> str:
    """What a user's client prints."""
    code = CLIENT.replace("OPEN", repr(arguments)).replace("WORK", work).replace("PATIENCE", str(patience))
    return run("runuser", "-u", user, "--", PYTHON, "-c", code)


@contextmanager
def drop_in(text: str) -> Iterator[None]:
    """The service with a drop-in, stopped before and after; a connection starts it."""
    DROP_IN.mkdir(parents=True, exist_ok=True)
    file = DROP_IN / "check.conf"
    file.write_text(text)
    stop()
    try:
        yield
    finally:
        file.unlink()
        stop()


def stop() -> None:
    run("systemctl", "daemon-reload")
    run("systemctl", "stop", "kvmd.service")


def installs() -> str:
    """From the wheel, offline; twice, and the second time changes nothing."""
    wheel = next(WHEELS.glob("libkvm-*.whl"))
    os.environ |= {
        "WHEEL": str(wheel),
        "WHEELHOUSE": str(WHEELS),
        "PIP_NO_COMPILE": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    run(f"{SOURCE}/tools/install", "--enable")
    CONFIG.write_text(RULES)
    before = {path: path.stat().st_ino for path in Path("/usr/lib/systemd/system").glob("kvmd*")}
    assert len(before) == 4, before
    run(f"{SOURCE}/tools/install")
    assert before == {path: path.stat().st_ino for path in before}
    assert CONFIG.read_text() == RULES
    run("usermod", "-aG", "kvmd", "alice")
    assert grp.getgrnam("kvmd").gr_mem == ["alice"]
    assert show("ActiveState", "kvmd.socket") == "active"
    return run("kvmd", "--version")


def exposure() -> str:
    """At most 1.9, and 0.7 for dumps only, as this systemd scores the units it has loaded."""
    said = []
    for unit, most in (("kvmd.service", 1.9), ("kvmd-dumps.service", 0.7)):
        last = run("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        assert float(re.search(r"([\d.]+) \w+", last)[1]) <= most, last
        said.append(last.removeprefix("→ Overall exposure level for "))
    return "; ".join(said)


def activates() -> str:
    """A connection starts the service; a member of the group reads, and somebody else is refused."""
    assert show("ActiveState") == "inactive"
    began = time.monotonic()
    answer = client("alice")
    took = time.monotonic() - began
    assert answer == "OK b'Linux version'", f"{answer}\n{journal()}"
    assert show("ActiveState") == "active"
    denied = client("bob")
    assert denied.startswith("POLICY_DENIED"), denied
    return f"{took:.1f} s with a client's start; bob: {denied}"


def confined() -> str:
    """What the daemon and its workers have, by the kernel's word."""
    pid = show("MainPID")
    children = run("pgrep", "-P", pid).split()
    daemon, *workers = (_status(each) for each in (pid, *children))
    assert workers
    assert {daemon["CapEff"], daemon["CapBnd"]} == {"0000000400020004"}, daemon
    assert (daemon["NoNewPrivs"], daemon["Seccomp"]) == ("1", "2")
    assert daemon["Uid"].split()[0] != "0"
    for worker in workers:
        assert {worker["CapEff"], worker["CapPrm"], worker["CapAmb"]} == {"0000000000000000"}, worker
        assert int(worker["Seccomp_filters"]) > int(daemon["Seccomp_filters"])
    return run("grep", "-h", "-o", "workers run with.*", "-", input=journal(200))


def _status(pid: str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def live_sources() -> str:
    """Memory by /proc/kcore, symbols by kallsyms, types by BTF, arguments and environments, the log."""
    work = (
        "ps = kernel.processes(); assert any(p.pid == 1 and p.comm == 'systemd' for p in ps), ps;"
        "one = next(p for p in ps if p.pid == 1); assert kernel.argv(one); assert kernel.environ(one);"
        "assert kernel.symbols(['init_task', 'jiffies'])['init_task'].value >> 63;"
        "print('OK', len(ps), 'processes')"
    )
    answer = client("alice", work)
    assert answer.startswith("OK"), f"{answer}\n{journal()}"
    return answer


def no_files() -> str:
    """KVM_NO_FILES is refused with its reason; with the drop-in it works, and its workers can be ended."""
    work = "print('OK', len(kernel.processes()))"
    refused = client("alice", work, no_files=True)
    assert refused.startswith("POLICY_DENIED"), refused
    with drop_in(Path("/usr/share/doc/kvmd/kvmd.service.d/no-files.conf").read_text()):
        shown = client("alice", work, no_files=True)
        assert shown.startswith("OK"), f"{shown}\n{journal()}"
        pid = show("MainPID")
        run("systemctl", "stop", "kvmd.service")
        assert not Path(f"/proc/{pid}").exists()
        assert show("Result") == "success", journal()
    return f"{refused}; with the drop-in: {shown} processes"


def dumps() -> str:
    """A dump that is root's alone is opened by root's service, and reaches a worker, which judges it."""
    dump = Path("/var/crash/vmcore")
    dump.write_bytes(b"\x7fELF" + bytes(4096))
    dump.chmod(0o600)
    answer = client("alice", corefile=str(dump))
    assert answer.split()[0] in {"UNSUPPORTED_FORMAT", "CORRUPT_IMAGE", "TRUNCATED_IMAGE"}, answer
    return answer


def reloads() -> str:
    """systemctl reload: the new policy counts."""
    CONFIG.write_text("")
    run("systemctl", "reload", "kvmd.service")
    until(lambda: client("alice").startswith("POLICY_DENIED"))
    CONFIG.write_text(RULES)
    run("systemctl", "reload", "kvmd.service")
    until(lambda: client("alice").startswith("OK"))
    return show("StatusText")


def killed() -> str:
    """kill -9: clients hear it within a second, and are answered again by the next one."""
    holder = (
        "print('open', flush=True); sys.stdin.readline(); began = time.monotonic();\n"
        "        while True:\n"
        "            try: kernel.read(kernel.symbol('linux_banner').value, 8)\n"
        "            except libkvm.KvmError as failure:\n"
        "                print(failure.reason.value, type(failure).__name__, time.monotonic() - began, flush=True)\n"
        "                sys.exit()"
    )
    code = CLIENT.replace("OPEN", "{}").replace("WORK", holder).replace("PATIENCE", "60")
    with subprocess.Popen(
        ["runuser", "-u", "alice", "--", PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        pid = show("MainPID")
        os.kill(int(pid), 9)
        began = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        heard = process.stdout.readline().split()
        assert heard[1] == "UnavailableError", heard
        assert float(heard[2]) < 1, heard
    until(lambda: show("ActiveState") == "active" and show("MainPID") not in {pid, "0"})
    ready = time.monotonic() - began
    assert client("alice").startswith("OK"), journal()
    again = time.monotonic() - began
    assert int(show("NRestarts")) >= 1
    return f"{heard[0]} after {float(heard[2]):.2f} s; ready after {ready:.1f} s, a new client after {again:.1f} s"


def upgrade() -> str:
    """A restart keeps the socket: who connects meanwhile waits, and is answered."""
    inode = os.stat("/run/kvmd/kvmd.sock").st_ino
    run("systemctl", "--no-block", "restart", "kvmd.service")
    answer = client("alice")
    assert answer.startswith("OK"), answer
    assert os.stat("/run/kvmd/kvmd.sock").st_ino == inode
    return f"socket inode {inode} before and after"


def watchdog() -> str:
    """A daemon that no longer answers on its public socket (here: every place is taken) is ended and started again."""
    CONFIG.write_text(RULES + "[limits]\nconnections = 8\n")
    hold = (
        "import socket, time; socks = [socket.socket(socket.AF_UNIX) for _ in range(8)]\n"
        "for each in socks: each.connect('/run/kvmd/kvmd.sock')\n"
        "time.sleep(200)"
    )
    try:
        with drop_in("[Service]\nWatchdogSec=20\n"):
            run("systemctl", "start", "kvmd.service")
            pid = show("MainPID")
            with subprocess.Popen(["runuser", "-u", "bob", "--", PYTHON, "-c", hold]) as hog:
                took = until(lambda: show("MainPID") != pid, 120)
                hog.terminate()
            assert "watchdog" in journal(60).lower(), journal()
            until(lambda: show("ActiveState") == "active")
    finally:
        CONFIG.write_text(RULES)
    return f"ended {took:.0f} s after it stopped to answer (WatchdogSec=20)"


def idle() -> str:
    """The service ends when nobody is there; the next client starts it again."""
    with drop_in("[Service]\nExecStart=\nExecStart=/usr/bin/kvmd --idle-exit 3\n"):
        assert client("alice").startswith("OK")
        took = until(lambda: show("ActiveState") == "inactive")
        assert show("Result") == "success"
        assert client("alice").startswith("OK")
    return f"gone {took:.1f} s after the last client"


def dumps_only() -> str:
    """The other variant on the same socket: what its user may read, and no running kernel."""
    dump = Path("/var/crash/vmcore")
    run("systemctl", "disable", "--now", "kvmd.socket")
    run("systemctl", "enable", "--now", "kvmd-dumps.socket")
    closed = client("alice", corefile=str(dump))
    assert closed.startswith("SOURCE_ACCESS"), f"{closed}\n{journal()}"
    run("chgrp", "kvmd-dumps", str(dump))
    dump.chmod(0o640)
    opened = client("alice", corefile=str(dump))
    assert opened.split()[0] in {"UNSUPPORTED_FORMAT", "CORRUPT_IMAGE", "TRUNCATED_IMAGE"}, opened
    live = client("alice")
    assert live.startswith("NO_LIVE_SOURCE"), live
    status = _status(show("MainPID", "kvmd-dumps.service"))
    assert {status["CapEff"], status["CapBnd"]} == {"0000000000000000"}, status
    run("systemctl", "disable", "--now", "kvmd-dumps.socket")
    run("systemctl", "stop", "kvmd-dumps.service")
    run("systemctl", "enable", "--now", "kvmd.socket")
    return live


def devmem() -> str:
    """DeviceAllow= lets /dev/mem through, which this kernel keeps RAM out of; with that lifted, RAM is read."""
    strict = client("alice", corefile="/dev/mem")
    # Other checks may have lifted it already; but nothing that the unit keeps back may show.
    assert strict.startswith(("STRICT_DEVMEM", "OK")), f"{strict}\n{journal()}"
    run("guest-host", "open-devmem")
    answer = client("alice", corefile="/dev/mem")
    assert answer == "OK b'Linux version'", f"{answer}\n{journal()}"
    return strict


def writes() -> str:
    """To open for writing takes the rule and the drop-in; what is written then is a matter of the live checks."""
    work = "print('OK')"
    ruled = client("alice", work, write=True)
    assert ruled.startswith("POLICY_DENIED"), ruled
    CONFIG.write_text(RULES.replace('"log"]', '"log", "write"]'))
    try:
        with drop_in(""):
            shut = client("alice", work, write=True)
            assert shut.startswith("SOURCE_ACCESS"), f"{shut}\n{journal()}"
        with drop_in(Path("/usr/share/doc/kvmd/kvmd.service.d/write.conf").read_text()):
            opened = client("alice", work, write=True)
            assert opened == "OK", f"{opened}\n{journal()}"
    finally:
        CONFIG.write_text(RULES)
        stop()
    return shut


def uninstalls() -> str:
    """Nothing is left but the configuration."""
    run(f"{SOURCE}/tools/install", "--uninstall")
    assert not Path("/usr/lib/kvmd").exists()
    assert not list(Path("/usr/lib/systemd/system").glob("kvmd*"))
    assert not Path("/run/kvmd/kvmd.sock").exists()
    assert CONFIG.exists()
    return "the configuration is left"


CHECKS = {
    check.__name__: check
    for check in (
        installs, exposure, activates, confined, live_sources, no_files, dumps, reloads, killed, upgrade, watchdog,
        idle, dumps_only, devmem, writes, uninstalls,
    )
}  # fmt: skip


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def passes(name: str) -> bool:
    """Run a check and say how it went."""
    began, good, detail = time.monotonic(), True, ""
    try:
        detail = CHECKS[name]()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        good = False
    _say(f"{'ok  ' if good else 'FAIL'} {name} ({time.monotonic() - began:.1f} s) {detail}")
    return good


def main() -> int:
    """Run the named checks after the installation, or all."""
    wanted = sys.argv[3:] or list(CHECKS)
    failed = [name for name in wanted if not passes(name)]
    _say(f"{len(wanted) - len(failed)} of {len(wanted)} systemd checks passed" + f"; failed: {failed}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
