"""Checks of kvmd as a systemd service, as root in a guest whose PID 1 is systemd; see ``run``.

    systemd_checks.py SOURCE WHEELS [CHECK...]

SOURCE is a checkout, WHEELS a directory with kvmd's wheel and what it depends on: the first check installs from there,
offline. Clients are ordinary users. One function a check, in order: each leaves the service as the next one needs it.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path

from service import (
    AGAIN,
    CONFIG,
    HOLDER,
    PYTHON,
    RULES,
    WRITERS,
    client,
    drop_in,
    holding,
    journal,
    records,
    run,
    show,
    stop,
    until,
)
from service_remote import remote

SOURCE, WHEELS = Path(sys.argv[1]), Path(sys.argv[2])


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
    # To compile all of it would take minutes here; what is used, as pip does elsewhere.
    run(PYTHON, "-c", "import kvmd.__main__, kvmd.daemon, kvmd.worker.__main__, libkvm.transports.grpc")
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

    def states() -> list[dict[str, str]]:
        return [_status(each) for each in (pid, *run("pgrep", "-P", pid).split())]

    def settled() -> bool:
        filters = [int(each["Seccomp_filters"]) for each in states()]
        return all(each > filters[0] for each in filters[1:])

    until(settled)  # one that is started ahead imports all it needs, then gives up its rights, and then gets files
    daemon, *workers = states()
    assert workers
    assert {daemon["CapEff"], daemon["CapBnd"]} == {"0000000400020004"}, daemon
    assert (daemon["NoNewPrivs"], daemon["Seccomp"]) == ("1", "2")
    assert daemon["Uid"].split()[0] != "0"
    for worker in workers:
        assert {worker["CapEff"], worker["CapPrm"], worker["CapAmb"]} == {"0000000000000000"}, worker
    return run("grep", "-h", "-o", "workers run with.*", "-", input=journal(200))


def _status(pid: str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def live_sources() -> str:
    """Memory by /proc/kcore, symbols by kallsyms, types by BTF, and everything that is read with them."""
    work = (
        "ps = kernel.processes(); assert any(p.pid == 1 and p.comm == 'systemd' for p in ps), ps;"
        "one = next(p for p in ps if p.pid == 1); assert kernel.argv(one); assert kernel.environ(one);"
        "assert kernel.symbols(['init_task', 'jiffies'])['init_task'].value >> 63;"
        "assert any(f.pid == 1 for f in kernel.files(1)); assert next(iter(kernel.log())).text;"
        "assert len(kernel.load_average()) == 3; assert kernel.swap_areas(); assert kernel.cpu_times();"
        "assert kernel.cpus(); assert next(iter(kernel.pages())).virtual_address >> 63;"
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


def recorded() -> str:
    """The record is in the journal, with fields of its own: who, what, by which rule, in answer to which request."""
    uid = run("id", "-u", "alice")
    assert client("alice").startswith("OK")
    opened = records("KVMD_EVENT=open", "KVMD_STATUS=OK", f"KVMD_UID={uid}")[-1]
    assert opened["KVMD_IMAGE"] == "live", opened
    assert opened["KVMD_RULE"].startswith(f"{CONFIG}:"), opened
    assert opened["SYSLOG_IDENTIFIER"] == "kvmd"
    assert opened["_SYSTEMD_UNIT"] == "kvmd.service"
    assert json.loads(opened["MESSAGE"])["request"] == opened["KVMD_REQUEST"]
    assert records("KVMD_EVENT=close", f"KVMD_DESCRIPTOR={opened['KVMD_DESCRIPTOR']}")
    assert records("KVMD_EVENT=read", f"KVMD_DESCRIPTOR={opened['KVMD_DESCRIPTOR']}")
    assert records("KVMD_EVENT=connect", f"KVMD_UID={uid}")
    denied = client("bob")
    request = re.search(r"request=(\w+)", denied)[1]
    [refusal] = records(f"KVMD_REQUEST={request}")
    assert (refusal["KVMD_EVENT"], refusal["KVMD_STATUS"]) == ("denied", "POLICY_DENIED"), refusal
    return f"{len(records())} lines of kvmd.service; {denied}"


def looks_in() -> str:
    """Admin service, metrics and doctor of the service as it runs."""
    assert client("alice").startswith("OK")
    CONFIG.write_text(RULES + '[metrics]\nlisten = "unix:/run/kvmd/metrics.sock"\n')
    try:
        with drop_in(""):
            assert client("alice").startswith("OK")
            stats = json.loads(run("kvmctl", "--json", "admin", "stats"))
            calls = {(each["method"], each["status"]): each["count"] for each in stats["calls"]}
            assert calls["/kvmd.v1.KvmService/Open", "OK"] >= 1, calls
            assert stats["audit_lost"] == 0
            refused = run("runuser", "-u", "alice", "--", "kvmctl", "admin", "handles", good=False)
            assert "you may not use this socket" in refused, refused
            with holding(HOLDER) as (say, hear):
                [handle] = json.loads(run("kvmctl", "--json", "admin", "handles"))["handles"]
                run("kvmctl", "admin", "close", handle["tag"])
                say()
                assert hear().startswith("NO_SUCH_DESCRIPTOR"), journal()
            asked = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/kvmd/metrics.sock');"
            asked += "s.sendall(b'GET /metrics HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
            assert "kvmd_limit_used" in run(PYTHON, "-c", asked)
        healthy = run("runuser", "-u", "alice", "--", "kvmctl", "--timeout", "120", "doctor")
        assert "FAIL" not in healthy, healthy
        sick = run("runuser", "-u", "bob", "--", "kvmctl", "--timeout", "120", "doctor", good=False)
        assert "POLICY_DENIED" in sick, sick
        assert "[[policy]]" in sick, sick
        with drop_in("[Service]\nProtectKernelTunables=yes\n"):
            hidden = run("runuser", "-u", "alice", "--", "kvmctl", "--timeout", "120", "doctor", good=False)
            assert "NO_LIVE_SOURCE" in hidden, hidden
            assert "ProtectKernelTunables=" in hidden, hidden
    finally:
        CONFIG.write_text(RULES)
        stop()
    return healthy.splitlines()[-1]


def pace() -> float:
    """How long a Python takes to start and to import a lot: what else takes long here is measured by that."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        run(PYTHON, "-c", "import asyncio, grpc")
        took.append(time.monotonic() - began)
    return min(took)


def killed() -> str:
    """kill -9: clients hear it within a second, and the same ones are answered again by the next daemon."""
    usual = pace()
    return "; ".join((_killed(usual, 0), _killed(usual, 0.5)))


def _killed(usual: float, idle: float) -> str:
    """Once; with a client that asks at once, or that makes no call for so many seconds."""
    with holding(HOLDER + AGAIN) as (say, hear):
        pid = show("MainPID")
        os.kill(int(pid), 9)
        time.sleep(idle)
        say()
        heard = hear().split()
        assert heard[1] == "UnavailableError", heard
        assert float(heard[2]) < 1, heard
        assert hear() == "b'Linux'", journal()
        again = idle + float(hear())
    assert show("MainPID") not in {pid, "0"}
    assert int(show("NRestarts")) >= 1
    assert again < max(5, 8 * usual), f"{again:.1f} s, where a Python starts in {usual:.1f} s\n{journal()}"
    asked = f"asked {idle} s later, {heard[0]} after {float(heard[2]):.2f} s"
    return f"{asked}, answered again after {again:.1f} s, {again / usual:.1f} times as long as a Python takes to start"


def upgrade() -> str:
    """A restart keeps the socket: who connects meanwhile waits, and is answered."""
    inode = os.stat("/run/kvmd/kvmd.sock").st_ino
    run("systemctl", "--no-block", "restart", "kvmd.service")
    answer = client("alice")
    assert answer.startswith("OK"), answer
    assert os.stat("/run/kvmd/kvmd.sock").st_ino == inode
    return f"socket inode {inode} before and after"


def watchdog() -> str:
    """A daemon whose self-check hangs (its own way to grpc is gone) is ended and started again."""
    with drop_in("[Service]\nWatchdogSec=20\n"):
        run("systemctl", "start", "kvmd.service")
        pid = show("MainPID")
        Path("/run/kvmd/kvmd.sock.private").rename("/run/kvmd/elsewhere")
        took = until(lambda: show("MainPID") != pid, 120)
        run("rm", "-r", "/run/kvmd/elsewhere")
        assert "watchdog" in journal(60).lower(), journal()
        until(lambda: show("ActiveState") == "active")
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
    """To open for writing takes configuration, rule and drop-in; each write is on the record with hashes."""
    off = client("alice", "print('OK')", write=True)
    assert off.startswith("WRITES_OFF"), off
    address = "address = kernel.symbol('panic_print').value;"
    work = f"{address} kernel.write(address, b'\\x15' + bytes(7)); print('OK')"
    CONFIG.write_text(RULES + "[live]\nwrites = true\n")
    try:
        run("systemctl", "reload", "kvmd.service")
        until(lambda: client("alice", work, write=True).startswith("POLICY_DENIED"))
        CONFIG.write_text(WRITERS)
        with drop_in(""):
            shut = client("alice", work, write=True)
            assert shut.startswith("SOURCE_ACCESS"), f"{shut}\n{journal()}"
        with drop_in(Path("/usr/share/doc/kvmd/kvmd.service.d/write.conf").read_text()):
            opened = client("alice", work, write=True)
            assert opened == "OK", f"{opened}\n{journal()}"
            assert Path("/proc/sys/kernel/panic_print").read_text() == "21\n"
            [record] = records("KVMD_EVENT=write")[-1:]
            assert record["KVMD_OLD_SHA256"] == hashlib.sha256(bytes(8)).hexdigest(), record
            assert record["KVMD_NEW_SHA256"] == hashlib.sha256(b"\x15" + bytes(7)).hexdigest(), record
            assert int(record["KVMD_ADDRESS"], 16) >> 63
            assert record["KVMD_LENGTH"] == "8"
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
        installs, exposure, activates, confined, live_sources, recorded, looks_in, no_files, dumps, reloads, killed,
        upgrade, watchdog, idle, dumps_only, devmem, writes, remote, uninstalls,
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
