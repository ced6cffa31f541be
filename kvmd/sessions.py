"""What a caller may do with images: opens, closes and admits calls. The one place where opener, policy,
descriptors, workers and audit meet; knows nothing of gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from kvmd import live
from kvmd.access.audit import Audit, Reads, tag
from kvmd.access.policy import Decision, Policy
from kvmd.errors import AccessError, KvmError, Reason, SourceNotFoundError, error
from kvmd.front.peers import Connection
from kvmd.grants import Grants
from kvmd.handles.bounds import RunAs
from kvmd.handles.pool import ImageFiles, Pool
from kvmd.handles.table import Descriptor, Table
from kvmd.images.base import Kind, Progress, unheard
from kvmd.opener import OpenedFile, Opener
from kvmd.record import Record
from kvmd.tasks import uncancelled
from kvmd.wanted import PROCFS, Wanted, understood

PROCFS_ENVIRONMENTS = "procfs:environments"
"""The same, opened by a caller who may read any environment: the worker can, so the policy is asked again each time."""
_NOBODY = RunAs(65534, 65534)
_OWN_VIEW = Decision(True, "built-in: the client's own view")


class Rules(NamedTuple):
    """What a reload replaces, all at once.

    :ivar writes: whether the running kernel may be written at all.
    :ivar read_bytes: how much a descriptor may give out before that is put on the record.
    """

    policy: Policy
    writes: bool = False
    read_bytes: int = 64 << 20


class Change(NamedTuple):
    """A write, as the record has it: where, how long, and SHA-256 (hexadecimal) of what is there and what is to be."""

    address: int
    length: int
    old: str
    new: str


class _Gone(Record):
    """What to do when a connection closes. Equal for the same connection, so that it is done once."""

    sessions: Sessions
    caller: Connection

    def __call__(self) -> None:
        self.sessions.gone(self.caller)


class Sessions:
    """Descriptors and their callers."""

    def __init__(  # noqa: PLR0913, PLR0917 - it is where they meet
        self,
        opener: Opener,
        table: Table,
        pool: Pool,
        audit: Audit,
        grants: Grants,
        rules: Rules,
        lease: float = 0.0,
    ) -> None:
        """Bring them together.

        :param lease: for how many seconds the descriptors of a remote client outlive its connection.
        """
        self._opener, self._table, self._pool, self._audit, self.rules = opener, table, pool, audit, rules
        self._grants = grants
        self._reads: dict[str, Reads] = {}
        self._lease = lease
        self._leaving: set[Connection] = set()

    def obey(self, rules: Rules) -> None:
        """Go by other rules from here on; what was granted by the old ones alone ends."""
        self.rules = rules
        self._grants.review(lambda peer, image: rules.policy.decide(peer, image, "read").allowed)

    def __iter__(self) -> Iterator[Descriptor]:
        return iter(self._table)

    def note(self, event: str, caller: Connection, **facts: object) -> bool:
        """Put on the record what is no open, read, write or close; answers as :meth:`Audit.record`."""
        return self._audit.record(event, caller.peer, **facts)

    def connected(self, caller: Connection) -> None:
        """Put a connection on the record."""
        status = "OK" if caller.refusal is None else caller.refusal.reason.value
        self.note("connect", caller, status=status, admin=caller.admin)

    async def open(  # noqa: PLR0913 - all that kvm_open(3) takes, and who asks
        self,
        caller: Connection,
        *,
        execfile: str | None,
        corefile: str | None,
        swapfiles: tuple[str, ...],
        flags: int,
        dump_offset: int | None = None,
        progress: Progress = unheard,
    ) -> Descriptor:
        """Open an image for a caller.

        :param progress: is told how far that has come, if much of the image must be looked through.
        :raises KvmError: whatever kept it from being opened.
        """
        began = time.monotonic()
        facts: dict[str, object] = {"core": corefile, "exec": execfile, "flags": flags}
        if dump_offset is not None:
            facts["dump_offset"] = dump_offset
        facts |= {"swap": list(swapfiles)} if swapfiles else {}
        with self._failures("open", caller, began, facts), ExitStack() as files:
            wanted = understood(execfile, corefile, swapfiles, flags, dump_offset)
            self._check_writes(wanted)
            if wanted.kind is Kind.PROCFS:
                wanted = wanted._replace(name=self._view(caller))
            choice = self._choice(caller, wanted)
            # What a swap image holds is read by the client like the dump itself, and by the same rules.
            swap = [self._choice(caller, Wanted(Kind.DUMP, name)) for name in wanted.swapfiles]
            self._table.room(caller.peer.identity)
            image, opened = await uncancelled(asyncio.to_thread(self._files, wanted, caller, (choice, *swap), files))
            entry = await self._pool.acquire(opened, caller.peer.identity, progress)
            try:
                if caller.closed:
                    raise error(Reason.CANCELLED, "the client went away")
                descriptor = self._table.add(caller.peer.identity, caller, image, opened.kind, opened.writable, entry)
            except BaseException:
                self._pool.release(entry)
                raise
        caller.on_close(_Gone(self, caller))
        facts |= {"image": image, "rule": choice[image].rule}
        facts |= {"worker": entry.worker.pid, "descriptor": tag(descriptor.id)}
        if not self._record("open", caller, began, facts, "OK"):
            self._close(descriptor, caller)
            raise _unrecorded("open")
        return descriptor

    def _choice(self, caller: Connection, wanted: Wanted) -> dict[str, Decision]:
        """The images that the name may mean and the caller may open; a denial if there is none."""
        if wanted.kind is not Kind.DUMP:
            return {wanted.name: self._allowed(caller, wanted.name, wanted.verbs)}
        choice: dict[str, Decision] = {}
        denial: KvmError | None = None
        for path in self._opener.dump_candidates(wanted.name):
            image = f"dump:{path}"
            try:
                choice[image] = self._allowed(caller, image, wanted.verbs)
            except AccessError as denied:
                denial = denial or denied
        if denial is not None and not choice:
            raise denial
        return choice

    def _files(
        self, wanted: Wanted, caller: Connection, choices: Sequence[Iterable[str]], files: ExitStack
    ) -> tuple[str, ImageFiles]:
        """Open what is named. Blocks, as file systems do: runs in a thread.

        :param choices: the images that the dump's name may mean, and those of each swap image.
        :returns: the policy's name of the image, and its files.
        """
        named: list[tuple[str, OpenedFile]] = []
        image, run_as = wanted.name, None
        choice, *swap = choices
        if wanted.kind is Kind.DUMP:
            core = self._first(wanted.name, choice)
            named.append(("core", files.enter_context(core)))
            image = f"dump:{core.path}"
        else:
            for role, file in live.open_files(wanted.kind, wanted.writable):
                named.append((role, files.enter_context(file)))
        if wanted.kind is Kind.PROCFS:
            run_as = _rights(caller, environments=image == PROCFS_ENVIRONMENTS)
        if wanted.execfile is not None:
            named.append(("exec", files.enter_context(self._opener.open_exec(wanted.execfile))))
        for name, images in zip(wanted.swapfiles, swap, strict=True):
            named.append(("swap", files.enter_context(self._first(name, images))))
        opened = ImageFiles(
            wanted.kind, tuple(named), wanted.writable, run_as, wanted.dump_offset, any_swap=wanted.any_swap
        )
        return image, opened

    def _first(self, name: str, choice: Iterable[str]) -> OpenedFile:
        for image in choice:
            with suppress(SourceNotFoundError):
                return self._opener.open_dump(image.removeprefix("dump:"))
        raise error(Reason.SOURCE_NOT_FOUND, f"{name}: No such file or directory", path=name, errno="ENOENT")

    def admit(self, caller: Connection, id: str, verbs: tuple[str, ...]) -> Descriptor:  # noqa: A002
        """The caller's descriptor, if the policy as it is now allows these verbs on its image.

        :raises KvmError: NO_SUCH_DESCRIPTOR, POLICY_DENIED, or why its worker is gone.
        """
        descriptor = self._table.get(id, caller.peer.identity)
        facts = {"image": descriptor.image, "descriptor": tag(id)}
        with self._failures("denied", caller, time.monotonic(), facts):
            if "write" in verbs:
                _check_writable(descriptor)
            self._allowed(caller, descriptor.image, verbs)
        return self._kept(caller, descriptor)

    def _kept(self, caller: Connection, descriptor: Descriptor) -> Descriptor:
        """A descriptor that a remote client names by another connection than before: it belongs to that one now."""
        if caller.peer.cert is None or descriptor.connection is caller:
            return descriptor
        descriptor = self._table.move(descriptor, caller)
        caller.on_close(_Gone(self, caller))
        return descriptor

    @contextmanager
    def writes(self, caller: Connection, descriptor: Descriptor, change: Change) -> Iterator[None]:
        """Put a write on the record before it is done, and how it went after.

        :raises KvmError: INTERNAL if that can't be; it must not be done then.
        """
        began = time.monotonic()
        facts = {"image": descriptor.image, "descriptor": tag(descriptor.id), "address": f"{change.address:#x}"}
        hashes = {"old_sha256": change.old, "new_sha256": change.new}
        if not self._audit.record("write", caller.peer, **facts, length=change.length, **hashes):
            raise _unrecorded("write")
        with self._failures("written", caller, began, facts):
            yield
        self._record("written", caller, began, facts, "OK")

    def reads(
        self,
        caller: Connection,
        descriptor: Descriptor,
        count: int,
        ranges: Sequence[tuple[int, int]],
        calls: int = 1,
    ) -> None:
        """Count what a descriptor gives out, and put it on the record once it is much.

        :param ranges: the (address, length) that were asked for.
        """
        reads = self._reads.get(descriptor.id)
        if reads is None:
            reads = self._reads[descriptor.id] = Reads()
        reads.add(count, ranges, calls)
        if reads.bytes >= self.rules.read_bytes:
            self._put_reads(caller, descriptor, reads)

    def tally(self) -> None:
        """Count what was read directly since the last time."""
        for descriptor in self._table:
            self._tally(descriptor)

    def _tally(self, descriptor: Descriptor) -> None:
        calls, size = self._grants.counts(descriptor)
        if calls:
            self.reads(descriptor.connection, descriptor, size, (), calls)

    def _put_reads(self, caller: Connection, descriptor: Descriptor, reads: Reads) -> None:
        facts = {"image": descriptor.image, "descriptor": tag(descriptor.id)}
        self._audit.record("read", caller.peer, **facts, **reads.taken())

    def close(self, caller: Connection, id: str) -> None:  # noqa: A002
        """Close a descriptor of the caller's."""
        self._close(self._table.get(id, caller.peer.identity), caller)

    def _close(self, descriptor: Descriptor, caller: Connection) -> None:
        self._table.remove(descriptor)
        self._grants.end(descriptor)
        self._tally(descriptor)
        self._pool.release(descriptor.entry)
        if (reads := self._reads.pop(descriptor.id, None)) is not None and reads.calls:
            self._put_reads(caller, descriptor, reads)
        self._audit.record("close", caller.peer, image=descriptor.image, descriptor=tag(descriptor.id))

    def take_away(self, name: str) -> bool:
        """Close the descriptor of this :func:`~kvmd.access.audit.tag`, whosever it is; False if there is none."""
        for descriptor in self._table:
            if tag(descriptor.id) == name:
                self._close(descriptor, descriptor.connection)
                return True
        return False

    def gone(self, caller: Connection) -> None:
        """Close what a connection leaves behind; what a remote one does, after its lease."""
        if caller.peer.cert is None or not self._lease:
            self._close_all(caller)
        elif self._table.of(caller):
            self._leaving.add(caller)
            asyncio.get_running_loop().call_later(self._lease, self._close_all, caller)

    def _close_all(self, caller: Connection) -> None:
        self._leaving.discard(caller)
        for descriptor in self._table.of(caller):
            self._close(descriptor, caller)

    def end(self) -> None:
        """Close what still has a lease; at the daemon's end."""
        for caller in list(self._leaving):
            self._close_all(caller)

    def _check_writes(self, wanted: Wanted) -> None:
        if wanted.writable and not self.rules.writes:
            path = "/dev/mem" if wanted.kind is Kind.MEM else "/proc/kcore"
            message = f"{path}: writes to the running kernel are off; live.writes in the configuration turns them on"
            raise error(Reason.WRITES_OFF, message, path=path, key="live.writes")

    def _allowed(self, caller: Connection, image: str, verbs: tuple[str, ...]) -> Decision:
        if image in (PROCFS, PROCFS_ENVIRONMENTS):
            # A worker with the client's own rights shows what the client could see itself; but nobody comes from afar
            # with rights here, and one that may read all environments shows more than that.
            if caller.peer.cert is None and (image == PROCFS or "environment" not in verbs):
                return _OWN_VIEW
            image = "live"
        decision = Decision(False, "default")
        for verb in verbs:
            decision = self.rules.policy.decide(caller.peer, image, verb)
            if not decision.allowed:
                message = f"{image}: the policy does not allow {caller.peer.identity} to {verb} ({decision.rule})"
                path = image.partition(":")[2] or image
                raise error(Reason.POLICY_DENIED, message, path=path, image=image, verb=verb, rule=decision.rule)
        return decision

    def _view(self, caller: Connection) -> str:
        """The name of what KVM_NO_FILES opens for this caller."""
        local = caller.peer.cert is None
        everything = local and self.rules.policy.decide(caller.peer, "live", "environment").allowed
        return PROCFS_ENVIRONMENTS if everything else PROCFS

    @contextmanager
    def _failures(self, event: str, caller: Connection, began: float, facts: Mapping[str, object]) -> Iterator[None]:
        """Write down an operation that fails, is given up, or is denied."""
        try:
            yield
        except asyncio.CancelledError:
            self._record(event, caller, began, facts, Reason.CANCELLED.value)
            raise
        except KvmError as failure:
            denied = failure.reason is Reason.POLICY_DENIED
            what = {key: failure.metadata.get(key) for key in ("verb", "rule")} if denied else {}
            self._record("denied" if denied else event, caller, began, facts, failure.reason.value, **what)
            raise
        except Exception:
            self._record(event, caller, began, facts, Reason.INTERNAL.value)
            raise

    def _record(
        self, event: str, caller: Connection, began: float, facts: Mapping[str, object], status: str, **more: object
    ) -> bool:
        took = round(time.monotonic() - began, 6)
        return self._audit.record(event, caller.peer, **facts, **more, status=status, seconds=took)


def _rights(caller: Connection, *, environments: bool) -> RunAs:
    """The rights of the worker that shows /proc to a caller: the caller's; nobody's for one with a certificate."""
    peer = caller.peer
    rights = _NOBODY if peer.cert is not None else RunAs(peer.uid, peer.gid, peer.groups, environments)
    if not rights.possible:
        message = f"the daemon can't take the rights of {peer.identity}, so it shows /proc to its own user only"
        raise error(Reason.POLICY_DENIED, message, path="/proc", image=PROCFS, verb="info", rule="built-in: own uid")
    return rights


def _unrecorded(what: str) -> KvmError:
    return error(Reason.INTERNAL, f"the {what} can't be put on the audit record; the daemon's log says why")


def _check_writable(descriptor: Descriptor) -> None:
    """Whether an image can be written at all comes before who may: it is no secret."""
    if descriptor.kind is Kind.DUMP:
        raise error(Reason.WRITE_DEAD, "a crash dump can't be written", path=descriptor.image)
    if descriptor.kind is Kind.PROCFS:
        raise error(Reason.NO_FILES, "a descriptor opened with KVM_NO_FILES has no kernel memory", call="kvm_write")
    if not descriptor.writable:
        raise error(Reason.WRITE_READ_ONLY, "the descriptor was opened read-only; open it with O_RDWR")
