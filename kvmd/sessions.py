"""What a caller may do with images: opens, closes and admits calls. The one place where opener, policy,
descriptors, workers and audit meet; knows nothing of gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from kvmd.access.audit import Audit, tag
from kvmd.access.policy import Decision, Policy
from kvmd.errors import AccessError, KvmError, Reason, SourceNotFoundError, error
from kvmd.front.peers import Connection
from kvmd.handles.pool import ImageFiles, Pool
from kvmd.handles.table import Descriptor, Table
from kvmd.opener import OpenedFile, Opener
from kvmd.tasks import uncancelled

O_RDWR = 2
KVM_NO_FILES = 0x80000000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an open asks for, once its flags have been understood."""

    corefile: str
    execfile: str | None
    writable: bool

    @property
    def verbs(self) -> tuple[str, ...]:
        """What the policy must allow."""
        return ("info", "write") if self.writable else ("info",)


@dataclass(frozen=True, slots=True)
class _Gone:
    """What to do when a connection closes. Equal for the same connection, so that it is done once."""

    sessions: Sessions
    caller: Connection

    def __call__(self) -> None:
        self.sessions.gone(self.caller)


class Sessions:
    """Descriptors and their callers."""

    def __init__(self, opener: Opener, policy: Policy, table: Table, pool: Pool, audit: Audit) -> None:
        self._opener, self.policy, self._table, self._pool, self._audit = opener, policy, table, pool, audit

    async def open(
        self, caller: Connection, *, execfile: str | None, corefile: str | None, swapfiles: tuple[str, ...], flags: int
    ) -> Descriptor:
        """Open an image for a caller.

        :raises KvmError: whatever kept it from being opened.
        """
        began = time.monotonic()
        facts: dict[str, object] = {"core": corefile, "exec": execfile, "flags": flags}
        with self._failures("open", caller, began, facts), ExitStack() as files:
            wanted = _understood(execfile, corefile, swapfiles, flags)
            choice = self._choice(caller, wanted)
            self._table.room(caller.peer.identity)
            opened = await uncancelled(asyncio.to_thread(self._files, wanted, choice, files))
            path = opened.names.core or ""
            image = f"dump:{path}"
            entry = await self._pool.acquire(opened)
            try:
                if caller.closed:
                    raise error(Reason.CANCELLED, "the client went away")
                descriptor = self._table.add(caller.peer.identity, caller, image, entry)
                caller.on_close(_Gone(self, caller))
            except BaseException:
                self._pool.release(entry)
                raise
        facts |= {"image": image, "rule": choice[path].rule, "worker": entry.worker.pid, "descriptor": tag(descriptor.id)}
        self._record("open", caller, began, facts, "OK")
        return descriptor

    def _choice(self, caller: Connection, wanted: Wanted) -> dict[str, Decision]:
        """The paths that the dump's name may mean and the caller may open; a denial if there is none."""
        choice: dict[str, Decision] = {}
        denial: KvmError | None = None
        for path in self._opener.dump_candidates(wanted.corefile):
            try:
                choice[path] = self._allowed(caller, f"dump:{path}", wanted.verbs)
            except AccessError as denied:
                denial = denial or denied
        if denial is not None and not choice:
            raise denial
        return choice

    def _files(self, wanted: Wanted, choice: Iterable[str], files: ExitStack) -> ImageFiles:
        """Open what is named. Blocks, as file systems do: runs in a thread."""
        core = files.enter_context(self._first(wanted.corefile, choice))
        execfile = None if wanted.execfile is None else files.enter_context(self._opener.open_exec(wanted.execfile))
        return ImageFiles(core, execfile, (), wanted.writable)

    def _first(self, name: str, choice: Iterable[str]) -> OpenedFile:
        for path in choice:
            with suppress(SourceNotFoundError):
                return self._opener.open_dump(path)
        raise error(Reason.SOURCE_NOT_FOUND, f"{name}: No such file or directory", path=name, errno="ENOENT")

    def admit(self, caller: Connection, id: str, verbs: tuple[str, ...]) -> Descriptor:  # noqa: A002
        """The caller's descriptor, if the policy as it is now allows these verbs on its image.

        :raises KvmError: NO_SUCH_DESCRIPTOR, POLICY_DENIED, or why its worker is gone.
        """
        descriptor = self._table.get(id, caller.peer.identity)
        facts = {"image": descriptor.image, "descriptor": tag(id)}
        with self._failures("denied", caller, time.monotonic(), facts):
            self._allowed(caller, descriptor.image, verbs)
        return descriptor

    def close(self, caller: Connection, id: str) -> None:  # noqa: A002
        """Close a descriptor of the caller's."""
        self._close(self._table.get(id, caller.peer.identity), caller)

    def _close(self, descriptor: Descriptor, caller: Connection) -> None:
        self._table.remove(descriptor)
        self._pool.release(descriptor.entry)
        self._audit.record("close", caller.peer, image=descriptor.image, descriptor=tag(descriptor.id))

    def gone(self, caller: Connection) -> None:
        """Close what a connection leaves behind."""
        for descriptor in self._table.of(caller):
            self._close(descriptor, caller)

    def _allowed(self, caller: Connection, image: str, verbs: tuple[str, ...]) -> Decision:
        decision = Decision(False, "default")
        for verb in verbs:
            decision = self.policy.decide(caller.peer, image, verb)
            if not decision.allowed:
                message = f"{image}: the policy does not allow {caller.peer.identity} to {verb} ({decision.rule})"
                path = image.partition(":")[2]
                raise error(Reason.POLICY_DENIED, message, path=path, image=image, verb=verb, rule=decision.rule)
        return decision

    @contextmanager
    def _failures(self, event: str, caller: Connection, began: float, facts: Mapping[str, object]) -> Iterator[None]:
        """Write down an operation that fails, and that it was denied if it was."""
        try:
            yield
        except KvmError as failure:
            denied = failure.reason is Reason.POLICY_DENIED
            what = {key: failure.metadata.get(key) for key in ("verb", "rule")} if denied else {}
            self._record("denied" if denied else event, caller, began, facts, failure.reason.value, **what)
            raise

    def _record(
        self, event: str, caller: Connection, began: float, facts: Mapping[str, object], status: str, **more: object
    ) -> None:
        took = round(time.monotonic() - began, 6)
        self._audit.record(event, caller.peer, **facts, **more, status=status, seconds=took)


def _understood(execfile: str | None, corefile: str | None, swapfiles: tuple[str, ...], flags: int) -> Wanted:
    if flags & KVM_NO_FILES:
        raise error(Reason.UNSUPPORTED, "KVM_NO_FILES is not served by this version")
    if flags & ~O_RDWR:
        raise error(Reason.BAD_FLAGS, f"flags {flags:#x}: only O_RDONLY and O_RDWR are accepted", flags=f"{flags:#x}")
    if corefile is None or corefile == "/dev/mem":
        raise error(Reason.UNSUPPORTED, "the running kernel is not served by this version; name a dump as corefile")
    if swapfiles:
        raise error(Reason.UNSUPPORTED, "swap images are not served by this version; leave swapfile out")
    return Wanted(corefile, execfile, bool(flags & O_RDWR))
