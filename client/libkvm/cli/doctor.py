"""``kvmctl doctor``: why the running kernel can't be opened here, in plain words, and what to do.

Looks at what this user can see of the host and the daemon, then opens the running kernel as any client would.
Sources: kernel_lockdown(7), proc(5), capabilities(7), unix(7).
"""

from __future__ import annotations

import argparse
import errno
import grp
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from libkvm.cli.command import Answer, Tool, certificates
from libkvm.client import connect
from libkvm.errors import KvmError, Reason, error
from libkvm.printable import printable
from libkvm.session import LONG_TIMEOUT, default_target

_GOOD, _NOTE, _BAD = "ok", "note", "FAIL"
_NEEDED = {1: "CAP_DAC_OVERRIDE", 2: "CAP_DAC_READ_SEARCH", 17: "CAP_SYS_RAWIO", 34: "CAP_SYSLOG"}

# What to do, by why the open fails; the error itself says what is wrong.
_REMEDIES = {
    Reason.UNREACHABLE: "start it: systemctl enable --now kvmd.socket, or run kvmd",
    Reason.POLICY_DENIED: "add a [[policy]] rule for you to /etc/kvmd/kvmd.toml and systemctl reload kvmd, "
    "or have yourself put in a group that has one, and log in anew",
    Reason.BAD_CERTIFICATE: "see OTHER HOSTS in kvmd(8); that host's log says who was refused and why",
    Reason.LOCKDOWN: "boot with a lower lockdown= (Secure Boot raises it by itself), or use a crash dump",
    Reason.NO_LIVE_SOURCE: "run kvmd outside the container, or without ProtectKernelTunables=, ProcSubset=pid "
    "and InaccessiblePaths= for it; a kernel without CONFIG_PROC_KCORE has nothing to open",
    Reason.SOURCE_ACCESS: "run kvmd as root, or as kvmd.service does, "
    "with CAP_DAC_READ_SEARCH, CAP_SYS_RAWIO and CAP_SYSLOG",
    Reason.SOURCE_IO: "look into kvmd's log: journalctl -u kvmd",
    Reason.STRICT_DEVMEM: "leave corefile out: /proc/kcore needs no permission of /dev/mem's",
    Reason.NO_SYMBOLS: "kvmd needs CAP_SYSLOG, or kernel.kptr_restrict=0 and CAP_SYS_ADMIN, to see /proc/kallsyms",
    Reason.NO_TYPES: "the kernel has no CONFIG_DEBUG_INFO_BTF: name a vmlinux with DWARF as execfile",
    Reason.WORKER_DIED: "look into kvmd's log; a SystemCallFilter= stricter than kvmd.service's kills workers",
    Reason.WORKER_HUNG: "the host may be overloaded: raise limits.worker_timeout",
    Reason.CONNECTION_LIMIT: "close clients of yours, or raise limits.connections_per_uid",
    Reason.DEADLINE: "the host may be overloaded: try --timeout 120",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has shown.

    :ivar status: ``ok``, ``note`` (no reason for a failure by itself) or ``FAIL``.
    :ivar what: what was looked at.
    :ivar told: what was seen.
    :ivar remedy: what to do about it; empty if nothing.
    """

    status: str
    what: str
    told: str
    remedy: str = ""


def _user(_target: str) -> Finding:
    names = []
    for gid in sorted({os.getegid(), *os.getgroups()}):
        try:
            names.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            names.append(str(gid))
    return Finding(_GOOD, "you", f"uid {os.geteuid()}, groups {', '.join(names)}")


def _lockdown(_target: str) -> Finding:
    try:
        level = re.search(r"\[(\w+)\]", Path("/sys/kernel/security/lockdown").read_text(encoding="ascii"))
    except OSError as failure:
        return Finding(_NOTE, "lockdown", f"can't be told: {failure.strerror}")
    found = level[1] if level else "unknown"
    if found == "confidentiality":
        return Finding(_BAD, "lockdown", f"{found}: the kernel gives its memory to nobody", _REMEDIES[Reason.LOCKDOWN])
    told = ": no writes, no /dev/mem" if found == "integrity" else ""
    return Finding(_NOTE if told else _GOOD, "lockdown", found + told)


def _kcore(_target: str) -> Finding:
    try:
        size = os.stat("/proc/kcore").st_size
    except OSError as failure:
        told = f"{failure.strerror}, as far as you can see"
        return Finding(_NOTE, "/proc/kcore", told, _REMEDIES[Reason.NO_LIVE_SOURCE])
    if not size:
        told = "there, but empty, as containers hide it; what counts is what kvmd sees"
        return Finding(_NOTE, "/proc/kcore", told, _REMEDIES[Reason.NO_LIVE_SOURCE])
    return Finding(_GOOD, "/proc/kcore", "there")


def _socket(target: str) -> Finding:
    path = target.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as probe:
        failure = probe.connect_ex(path)
    if not failure:
        return Finding(_GOOD, "socket", f"{path} lets you in")
    told = f"{path}: {os.strerror(failure)}"
    if failure in (errno.EACCES, errno.EPERM):
        return Finding(
            _BAD, "socket", told, "its mode or a directory above keeps you out: see listen.mode, SocketMode="
        )
    return Finding(_BAD, "socket", told, _REMEDIES[Reason.UNREACHABLE])


def _daemon(target: str) -> Finding:
    """Its capabilities, where the kernel says which process listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(target.removeprefix("unix:")):
            return Finding(_NOTE, "daemon", "not reached")
        pid, uid, _gid = struct.unpack("=iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if pid in (0, 1):
        return Finding(_GOOD, "daemon", "its socket is systemd's, which starts it when it is needed")
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError as failure:
        return Finding(_NOTE, "daemon", f"process {pid} of uid {uid}; more can't be seen: {failure.strerror}")
    effective = int((re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE) or ["", "0"])[1], 16)
    has = [name for bit, name in _NEEDED.items() if effective >> bit & 1]
    told = f"process {pid} of uid {uid} with {', '.join(has) or 'none of the capabilities that it needs'}"
    able = effective >> 17 & 1 and effective & (1 << 1 | 1 << 2)
    return Finding(_GOOD, "daemon", told) if able else Finding(_NOTE, "daemon", told, _REMEDIES[Reason.SOURCE_ACCESS])


def _open(target: str, options: argparse.Namespace) -> Finding:
    timeout, tls = options.timeout or LONG_TIMEOUT, certificates(options)
    try:
        with connect(target, timeout=timeout, long_timeout=timeout, **tls) as client, client.open() as kernel:
            info = kernel.info
    except KvmError as failure:
        return Finding(_BAD, "open", f"{failure.reason.value}: {failure.message}", _remedy(failure.reason))
    told = f"{info.release} by {info.format}; symbols: {info.symbols}, types: {info.types or 'none'}"
    if info.symbols == "vmcoreinfo":
        return Finding(_BAD, "open", told, _remedy(Reason.NO_SYMBOLS))
    if not info.types:
        return Finding(_BAD, "open", told, _remedy(Reason.NO_TYPES))
    return Finding(_GOOD, "open", told)


def _remedy(reason: Reason) -> str:
    return _REMEDIES.get(reason, "docs/errors.md says what this reason means; kvmd's log may say more")


_LOCAL: Sequence[Callable[[str], Finding]] = (_user, _lockdown, _kcore, _socket, _daemon)


def run(options: argparse.Namespace) -> Answer:
    """Look at everything; fail if the running kernel can't be opened."""
    target = options.target or default_target()
    findings = [look(target) for look in (_LOCAL if target.startswith("unix:") else (_user,))]
    findings.append(_open(target, options))
    last = findings[-1]
    failures = [error(Reason.UNSUPPORTED, "the running kernel can't be opened")] if last.status == _BAD else []
    return Answer({"target": target, "findings": findings, "works": not failures}, _lines(findings), failures)


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    for each in findings:
        yield f"{each.status:4} {each.what}: {printable(each.told)}"
        if each.remedy:
            yield f"     -> {each.remedy}"


TOOL = Tool("say why the running kernel can't be opened here, and what to do", run)
