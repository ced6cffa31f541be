"""Gives up everything that a worker doesn't need, before it receives a byte that somebody else wrote.

Order matters: what needs privileges comes first, what takes them away next, and the seccomp filter last.
Each step is independent of the others, so that a kernel or container without one still has the rest; without
the mandatory ones there is no worker.

A worker that reads /proc for a client (KVM_NO_FILES) takes that client's rights instead of nobody's, and has no
Landlock: a process in a Landlock domain may look into none outside it, so it would see no environment and no
open file even of the client's own (docs/adr/0008-kvm-no-files.md).

Sources: prctl(2), capabilities(7), setrlimit(2), credentials(7), namespaces(7), landlock(7), seccomp(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import resource
import signal
import threading
from collections.abc import Callable
from typing import NamedTuple

from kvmd import syscalls
from kvmd.images.procfs.rights import READ_ANY, capset
from kvmd.worker import landlock, seccomp

USERS = ("kvmd-worker", "kvmd")
NOBODY = 65534

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWNET = 0x40000000
_ROOM = 4 << 30
_CAN_BECOME = 1 << 6 | 1 << 7  # CAP_SETGID, CAP_SETUID


class Identity(NamedTuple):
    """A client's rights, for a worker that reads /proc as that client.

    :ivar environments: whether it may open other users' environments too.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    environments: bool = False

    @classmethod
    def decode(cls, argument: str) -> Identity:
        """From the worker's argument ``uid:gid:group,group[:environments]``.

        :raises ValueError: it is none.
        """
        uid, gid, groups, *more = argument.split(":")
        numbers = tuple(int(word) for word in groups.split(",") if word)
        return cls(int(uid), int(gid), numbers, more == ["environments"])


class SandboxLimits(NamedTuple):
    """What a worker may use.

    :ivar memory: bytes of private memory (RLIMIT_DATA), threads' stacks included; a file that is mapped doesn't count.
    :ivar address_space: bytes of address space (RLIMIT_AS), files included; None for ``memory`` and 4 GiB.
    :ivar cpu: seconds of processor time (RLIMIT_CPU), after which it ends by SIGXCPU; None for no end.
    :ivar files: open descriptors.
    :ivar threads: threads of the worker's uid, over all workers; 0 for none. drgn needs some to read DWARF,
        unless OMP_NUM_THREADS=1 was in the environment when it was imported.
    :ivar writable: whether descriptors may be written at an offset (/dev/mem opened for writing).
    :ivar uid: the user to become if root; None for :func:`worker_ids`.
    :ivar gid: the group to become if root; None likewise.
    :ivar parent: if given, the process whose end must be the worker's too; its *thread* that started the worker
        must live as long, for that is what the kernel watches (prctl(2), PR_SET_PDEATHSIG).
    :ivar identity: if given, whose rights to take instead of ``uid``'s and ``gid``'s, to read /proc with them.
    :ivar keep: if given, all other descriptors are closed; standard error is to be named, too.

    Standard error must be a pipe, a socket or a terminal: a worker can't write to a regular file (RLIMIT_FSIZE).
    """

    memory: int = 1 << 30
    address_space: int | None = None
    cpu: int | None = None
    files: int = 1024
    threads: int = 1024
    writable: bool = False
    uid: int | None = None
    gid: int | None = None
    parent: int | None = None
    keep: tuple[int, ...] | None = None
    identity: Identity | None = None


def worker_ids() -> tuple[int, int]:
    """The user and group that a root worker becomes: kvmd-worker, else kvmd, else 65534."""
    for name in USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return NOBODY, NOBODY


def enter(limits: SandboxLimits, last: Callable[[], None] | None = None) -> list[str]:
    """Give up everything; for good. Called with one thread, with all modules imported, before any file is received.

    :param last: done when only the seccomp filter is missing, which lets no process be started.
    :return: the protections in force, for the log.
    :raises OSError: a mandatory one can't be had: the uid's drop (as root), no_new_privs, seccomp; or there are
        threads, which would keep what this one gives up.
    """
    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        raise OSError(errno.EBUSY, "the sandbox must be entered before any thread starts")
    done: list[str] = []
    if limits.keep is not None:
        _close_others(limits.keep)
    who = _rights(limits)
    if os.geteuid() == 0:
        _try(done, "network and IPC namespaces", lambda: syscalls.unshare(_CLONE_NEWNET | _CLONE_NEWIPC))
        _try(done, "empty root", _empty_root)
    _set_limits(limits)
    done.append("rlimits")
    done += _drop_privileges(who, limits.identity)
    syscalls.prctl(_PR_SET_DUMPABLE, 0, name="PR_SET_DUMPABLE")
    if limits.parent is not None:
        _die_with(limits.parent)
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1, name="PR_SET_NO_NEW_PRIVS")
    if syscalls.prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise OSError(errno.EPERM, "no_new_privs did not take")
    done.append("no_new_privs")
    # A process in a Landlock domain sees no environment of another's.
    if limits.identity is None and (version := landlock.restrict()):
        done.append(f"landlock {version}")
    if last is not None:
        last()
    _filter(limits)
    return [*done, "seccomp"]


def confine(limits: SandboxLimits) -> None:
    """Finish what :func:`enter` had begun when its ``last`` forked this process: its own bounds, end, and filter."""
    if limits.keep is not None:
        _close_others(limits.keep)
    _set_limits(limits)
    if limits.parent is not None:
        _die_with(limits.parent)
    _filter(limits)


def _filter(limits: SandboxLimits) -> None:
    view = seccomp.View.NONE
    if limits.identity is not None:
        view = seccomp.View.ANY if limits.identity.environments else seccomp.View.OWN
    seccomp.install(threads=limits.threads > 0, writable=limits.writable, view=view)


def _rights(limits: SandboxLimits) -> Identity | None:
    """Whose rights to take, None to keep one's own; looked up while there still are files to look them up in."""
    if limits.identity is None:
        if os.geteuid():
            return None
        uid, gid = worker_ids() if limits.uid is None or limits.gid is None else (limits.uid, limits.gid)
        if uid == 0 or gid == 0:
            raise OSError(errno.EINVAL, "a worker can't be root")
        return Identity(uid, gid)
    if syscalls.capabilities()[0] & _CAN_BECOME == _CAN_BECOME:
        return limits.identity
    # A daemon that isn't root serves its own user, whose rights it has, and root, who may become that user.
    if limits.identity.uid not in (0, os.geteuid()):
        raise OSError(errno.EPERM, f"can't take the rights of uid {limits.identity.uid}")
    return None


def _try(done: list[str], name: str, step: Callable[[], None]) -> None:
    """Do what a container or a unit file may forbid, and what the other steps don't rely on."""
    try:
        step()
    except OSError:
        return
    done.append(name)


def _close_others(keep: tuple[int, ...]) -> None:
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:  # CPython 3.11 takes closerange(0, 0) for all there are
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, max(first, 1 << 20))


def _empty_root() -> None:
    """Make an empty directory that no longer has a name the root: stat(2), which Landlock lets pass, finds nothing."""
    for parent in ("/run", "/tmp", "/dev/shm"):  # noqa: S108 - it is made with a random name and removed at once
        directory = f"{parent}/.kvmd-worker-{os.urandom(8).hex()}"
        try:
            os.mkdir(directory, 0o700)
        except OSError:
            continue
        try:
            os.chdir(directory)
        finally:
            os.rmdir(directory)
        os.chmod(".", 0)
        os.chroot(".")
        os.chdir("/")
        return
    raise OSError(errno.EROFS, "no place for a directory")


def _set_limits(limits: SandboxLimits) -> None:
    space = limits.memory + _ROOM if limits.address_space is None else limits.address_space
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: limits.files,
        resource.RLIMIT_NPROC: limits.threads,
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_AS: space,
    }
    for which, value in wanted.items():
        _soft, hard = resource.getrlimit(which)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))
    if limits.cpu is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu, limits.cpu + 1))  # at the hard limit it would be SIGKILL


def _kept(client: Identity | None) -> tuple[int, int]:
    """The capabilities to keep, in effect and permitted: those that a client's view takes, if we have them."""
    if client is None or not client.environments:
        return 0, 0
    permitted = syscalls.capabilities()[1] & READ_ANY
    return (permitted if client.uid == 0 else 0), permitted


def _drop_privileges(who: Identity | None, client: Identity | None) -> list[str]:
    """Take somebody's rights if given, and give up every capability but those that a client's view takes."""
    done: list[str] = []
    effective, permitted = _kept(client)
    # Needs CAP_SETPCAP, which a unit file may withhold; with no_new_privs an empty permitted set stays empty anyway.
    _try(done, "empty bounding set", _empty_bounding_set)
    if who is not None:
        done.append(_become(who, keep_capabilities=permitted != 0))
    if permitted:
        capset(effective, permitted)
    else:
        syscalls.capset_empty()  # with the permitted and inheritable ones goes the ambient set (capabilities(7))
    if syscalls.capabilities() != (effective, permitted, 0):
        raise OSError(errno.EPERM, "capabilities are left")
    done.append("capabilities to read any environment" if permitted else "no capabilities")
    return done


def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            syscalls.prctl(_PR_CAPBSET_DROP, capability, name="PR_CAPBSET_DROP")
        except OSError as failure:
            if failure.errno != errno.EINVAL:
                raise
            return  # past the kernel's last


def _become(who: Identity, *, keep_capabilities: bool) -> str:
    if keep_capabilities:
        syscalls.prctl(_PR_SET_KEEPCAPS, 1, name="PR_SET_KEEPCAPS")
    os.setgroups(who.groups)
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)
    changed = os.getresuid() == (who.uid,) * 3 and os.getresgid() == (who.gid,) * 3
    if not changed or sorted(os.getgroups()) != sorted(who.groups):
        raise OSError(errno.EPERM, "the uid did not change")
    return f"uid {who.uid}"


def _die_with(parent: int) -> None:
    # After the uid has changed: that clears it. The parent may have ended before it was set.
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, name="PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the daemon has ended")
