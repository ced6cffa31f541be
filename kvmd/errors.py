"""The table of reasons: what can go wrong, once, for the daemon, its workers and the client.

``TABLE`` maps each :class:`Reason` to its exception class, gRPC status, errno and libkvm text;
:func:`error` builds the exception for a reason, :func:`from_wire` rebuilds it on the far side.
``docs/errors.md`` is rendered from it. Pure: standard library only, shared with ``libkvm``.
"""

from __future__ import annotations

import errno as E  # noqa: N812 - the table below is wide enough
import os
from collections.abc import Mapping
from enum import Enum, unique
from typing import NamedTuple


@unique
class Reason(Enum):
    """Why an operation failed; the value is what ErrorInfo.reason says on the wire."""

    BAD_FLAGS = "BAD_FLAGS"
    PATH_TOO_LONG = "PATH_TOO_LONG"
    BAD_ARGUMENT = "BAD_ARGUMENT"
    FIELD_OUT_OF_BOUNDS = "FIELD_OUT_OF_BOUNDS"
    NO_PEER_IDENTITY = "NO_PEER_IDENTITY"
    BAD_CERTIFICATE = "BAD_CERTIFICATE"
    POLICY_DENIED = "POLICY_DENIED"
    SOURCE_NOT_FOUND = "SOURCE_NOT_FOUND"
    SOURCE_ACCESS = "SOURCE_ACCESS"
    SOURCE_IO = "SOURCE_IO"
    PATH_OUTSIDE = "PATH_OUTSIDE"
    PATH_DOTDOT = "PATH_DOTDOT"
    PATH_SYMLINK = "PATH_SYMLINK"
    PATH_FIFO = "PATH_FIFO"
    PATH_DEVICE = "PATH_DEVICE"
    PATH_DIRECTORY = "PATH_DIRECTORY"
    PATH_SOCKET = "PATH_SOCKET"
    PATH_HARDLINK = "PATH_HARDLINK"
    EMPTY_FILE = "EMPTY_FILE"
    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    CORRUPT_IMAGE = "CORRUPT_IMAGE"
    TRUNCATED_IMAGE = "TRUNCATED_IMAGE"
    SPLIT_IMAGE = "SPLIT_IMAGE"
    NO_DUMP_HEADER = "NO_DUMP_HEADER"
    NO_VMCOREINFO = "NO_VMCOREINFO"
    NO_SYMBOLS = "NO_SYMBOLS"
    NO_TYPES = "NO_TYPES"
    AMBIGUOUS = "AMBIGUOUS"
    EXEC_NOT_ELF = "EXEC_NOT_ELF"
    EXEC_STRIPPED = "EXEC_STRIPPED"
    EXEC_FOREIGN = "EXEC_FOREIGN"
    SWAP_FOREIGN = "SWAP_FOREIGN"
    SWAP_UNPROVEN = "SWAP_UNPROVEN"
    UNSUPPORTED = "UNSUPPORTED"
    CORRUPT_DATA = "CORRUPT_DATA"
    NOT_MAPPED = "NOT_MAPPED"
    NOT_PRESENT = "NOT_PRESENT"
    EXCLUDED = "EXCLUDED"
    BEYOND_DUMP = "BEYOND_DUMP"
    SHORT_FILE = "SHORT_FILE"
    CORRUPT_PAGE = "CORRUPT_PAGE"
    NO_SUCH_SYMBOL = "NO_SUCH_SYMBOL"
    NO_SUCH_PROCESS = "NO_SUCH_PROCESS"
    NO_USER_MEMORY = "NO_USER_MEMORY"
    TASK_RUNNING = "TASK_RUNNING"
    NO_SUCH_DESCRIPTOR = "NO_SUCH_DESCRIPTOR"
    DESCRIPTOR_LIMIT = "DESCRIPTOR_LIMIT"
    CONNECTION_LIMIT = "CONNECTION_LIMIT"
    CALL_LIMIT = "CALL_LIMIT"
    STREAM_LIMIT = "STREAM_LIMIT"
    BYTES_LIMIT = "BYTES_LIMIT"
    RATE_LIMIT = "RATE_LIMIT"
    WORKER_LIMIT = "WORKER_LIMIT"
    WORKER_DIED = "WORKER_DIED"
    WORKER_HUNG = "WORKER_HUNG"
    WORKER_MEMORY = "WORKER_MEMORY"
    WORKER_CPU = "WORKER_CPU"
    WRITE_DEAD = "WRITE_DEAD"
    WRITE_READ_ONLY = "WRITE_READ_ONLY"
    WRITES_OFF = "WRITES_OFF"
    NO_FILES = "NO_FILES"
    LOCKDOWN = "LOCKDOWN"
    STRICT_DEVMEM = "STRICT_DEVMEM"
    NO_LIVE_SOURCE = "NO_LIVE_SOURCE"
    CHANGED = "CHANGED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    UNREACHABLE = "UNREACHABLE"
    INTERNAL = "INTERNAL"


class KvmError(Exception):
    """The base of every error that kvmd answers and libkvm raises.

    :ivar reason: the word of the table of reasons.
    :ivar message: what happened, naming the thing and what to do.
    :ivar metadata: the dynamic parts of the message, as strings.
    :ivar address: the address at fault, or None.
    :ivar partial: the strings that were read before the failure; of reads of arguments and environments.
    """

    def __init__(self, reason: Reason, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.partial: list[str] = []

    @property
    def address(self) -> int | None:
        """The address at fault (``metadata['address']``), or None."""
        try:
            return int(self.metadata["address"], 16)
        except (KeyError, ValueError):
            return None

    @property
    def errno(self) -> int:
        """The errno of libkvm's face: the operating system's where it gave one, else the table's."""
        return _ERRNO.get(self.metadata.get("errno", ""), TABLE[self.reason].errno)

    @property
    def text(self) -> str:
        """libkvm's text for kvm_geterr(3) and errbuf: the table's, or the message where it has none."""
        template = TABLE[self.reason].text
        if template is None:
            return self.message
        values = {"path": "", "strerror": os.strerror(self.errno), **self.metadata}
        try:
            return template.format_map(values | {"hex": format(self.address or 0, "x")})
        except (KeyError, ValueError, IndexError):
            return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.message, self.metadata))


class RequestError(KvmError):
    """The request itself is wrong."""


class AccessError(KvmError):
    """The caller may not do this."""


class SourceError(KvmError):
    """A named file can't be opened."""


class SourceNotFoundError(SourceError):
    """There is no such file."""


class FormatError(KvmError):
    """A file was opened, but is not what it should be."""


class UnsupportedError(KvmError):
    """This image has no such thing, or kvmd can't do it for this image."""


class FaultError(KvmError):
    """Memory could not be read; :attr:`address` is the first byte that couldn't."""


class SymbolNotFoundError(KvmError, LookupError):
    """There is no symbol of this name; ``metadata['symbol']`` is the name asked for."""


class ProcessError(KvmError):
    """A process is not there, or has no such memory."""


class DescriptorError(KvmError):
    """The descriptor is unknown, closed, or somebody else's."""


class LimitError(KvmError):
    """A limit of the daemon's is reached; the message names its configuration key."""


class UnavailableError(KvmError):
    """The daemon or the image's worker is gone or too slow; open again."""


class DeadlineError(KvmError):
    """The deadline passed before the answer came."""


class CancelledError(KvmError):
    """The caller withdrew the call."""


class InternalError(KvmError):
    """A fault of kvmd's own; the message holds an incident id that the daemon's log explains."""


class Row(NamedTuple):
    """A row of the table.

    :ivar kind: the exception class.
    :ivar status: the name of the grpc.StatusCode.
    :ivar errno: the errno that libkvm's face leaves.
    :ivar text: libkvm's text, with {metadata keys}, {hex} = the address, {strerror}; None = the message.
    :ivar meaning: a sentence for the documentation.
    """

    kind: type[KvmError]
    status: str
    errno: int
    text: str | None
    meaning: str


_ERRNO = {name: number for number, name in E.errorcode.items()}
_FAULT = "_kvm_kvatop({hex})"  # NetBSD libkvm's text of a translation that failed, whatever the cause
_PATH = "{path}: {strerror}"
_WHAT = "{path}: "

TABLE: dict[Reason, Row] = {
    Reason.BAD_FLAGS: Row(RequestError, "INVALID_ARGUMENT", E.EINVAL, "bad flags arg", "open flags other than O_RDONLY, O_RDWR, KVM_ANY_SWAP, KVM_NO_FILES"),
    Reason.PATH_TOO_LONG: Row(RequestError, "INVALID_ARGUMENT", E.ENAMETOOLONG, "exec file name too long", "a file name of 1024 bytes or more"),
    Reason.BAD_ARGUMENT: Row(RequestError, "INVALID_ARGUMENT", E.EINVAL, None, "an argument that makes no sense"),
    Reason.FIELD_OUT_OF_BOUNDS: Row(RequestError, "INVALID_ARGUMENT", E.EINVAL, None, "a request field longer or larger than its bound"),
    Reason.NO_PEER_IDENTITY: Row(AccessError, "UNAUTHENTICATED", E.EACCES, None, "the connection did not come through kvmd's front"),
    Reason.BAD_CERTIFICATE: Row(AccessError, "UNAUTHENTICATED", E.EACCES, None, "the daemon's certificate, or the client's, was not accepted"),
    Reason.POLICY_DENIED: Row(AccessError, "PERMISSION_DENIED", E.EACCES, _WHAT + "Permission denied", "no policy rule allows this subject this verb on this image"),
    Reason.SOURCE_NOT_FOUND: Row(SourceNotFoundError, "NOT_FOUND", E.ENOENT, _PATH, "a named file does not exist"),
    Reason.SOURCE_ACCESS: Row(SourceError, "PERMISSION_DENIED", E.EACCES, _PATH, "the daemon itself may not open the file"),
    Reason.SOURCE_IO: Row(SourceError, "UNAVAILABLE", E.EIO, _PATH, "the operating system failed to open or read the file"),
    Reason.PATH_OUTSIDE: Row(SourceError, "PERMISSION_DENIED", E.EACCES, _WHAT + "not in a dump directory", "a file outside the configured directories"),
    Reason.PATH_DOTDOT: Row(SourceError, "INVALID_ARGUMENT", E.EINVAL, _WHAT + "name contains ..", "a file name with a .. component"),
    Reason.PATH_SYMLINK: Row(SourceError, "FAILED_PRECONDITION", E.ELOOP, _WHAT + "is a symbolic link", "a symbolic link anywhere in the name"),
    Reason.PATH_FIFO: Row(SourceError, "FAILED_PRECONDITION", E.EINVAL, _WHAT + "is a FIFO", "not a regular file"),
    Reason.PATH_DEVICE: Row(SourceError, "FAILED_PRECONDITION", E.ENODEV, _WHAT + "is a device", "a device other than the allowed ones"),
    Reason.PATH_DIRECTORY: Row(SourceError, "FAILED_PRECONDITION", E.EISDIR, _WHAT + "is a directory", "not a regular file"),
    Reason.PATH_SOCKET: Row(SourceError, "FAILED_PRECONDITION", E.EINVAL, _WHAT + "is a socket", "not a regular file"),
    Reason.PATH_HARDLINK: Row(SourceError, "PERMISSION_DENIED", E.EMLINK, None, "a file of several names, this one perhaps made by somebody else"),
    Reason.EMPTY_FILE: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, "empty file: {strerror}", "a dump of no bytes"),
    Reason.UNSUPPORTED_FORMAT: Row(FormatError, "UNIMPLEMENTED", E.ENOEXEC, None, "not a dump of a format that kvmd knows"),
    Reason.CORRUPT_IMAGE: Row(FormatError, "DATA_LOSS", E.EINVAL, None, "a dump of a known format whose structure contradicts itself"),
    Reason.TRUNCATED_IMAGE: Row(FormatError, "DATA_LOSS", E.EINVAL, None, "a dump that ends before its own headers do"),
    Reason.SPLIT_IMAGE: Row(FormatError, "UNIMPLEMENTED", E.EINVAL, None, "one part of a dump that makedumpfile split"),
    Reason.NO_DUMP_HEADER: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, "no valid dump header", "a NetBSD dump device's image, opened without the place of its dump; use kvm_dump_mkheader"),
    Reason.NO_VMCOREINFO: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "no VMCOREINFO, and no kernel in the dump that could be found without"),
    Reason.NO_SYMBOLS: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "no symbol table in the image; name a vmlinux as execfile"),
    Reason.NO_TYPES: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "no BTF in the image; name a vmlinux with DWARF, or raw BTF, as execfile"),
    Reason.AMBIGUOUS: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "an image without data symbols holds several things that could be the one looked for; name a vmlinux as execfile"),
    Reason.EXEC_NOT_ELF: Row(FormatError, "INVALID_ARGUMENT", E.ENOEXEC, "kernel is not an ELF file", "execfile is no ELF file"),
    Reason.EXEC_STRIPPED: Row(FormatError, "FAILED_PRECONDITION", E.ENOEXEC, None, "execfile, and so the name list, has neither symbols nor DWARF"),
    Reason.EXEC_FOREIGN: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "execfile belongs to another kernel than the image"),
    Reason.SWAP_FOREIGN: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "a swap image that is none of the dump's swap areas, or not as they were"),
    Reason.SWAP_UNPROVEN: Row(FormatError, "FAILED_PRECONDITION", E.EINVAL, None, "nothing in the dump shows whether a swap image is of its moment; KVM_ANY_SWAP takes it"),
    Reason.UNSUPPORTED: Row(UnsupportedError, "UNIMPLEMENTED", E.ENOSYS, None, "this image can't do this"),
    Reason.CORRUPT_DATA: Row(FormatError, "DATA_LOSS", E.EINVAL, None, "kernel data structures in the image contradict themselves"),
    Reason.NOT_MAPPED: Row(FaultError, "OUT_OF_RANGE", E.EFAULT, _FAULT, "no translation: the page tables have no entry for the address"),
    Reason.NOT_PRESENT: Row(FaultError, "OUT_OF_RANGE", E.EFAULT, None, "the page-table entry exists, but the page can't be had: swapped out to what is not given, poisoned, a device's"),
    Reason.EXCLUDED: Row(FaultError, "OUT_OF_RANGE", E.ENODATA, _FAULT, "the page was left out when the dump was made (makedumpfile -d)"),
    Reason.BEYOND_DUMP: Row(FaultError, "OUT_OF_RANGE", E.EFAULT, _FAULT, "no physical memory of the dump holds the address"),
    Reason.SHORT_FILE: Row(FaultError, "DATA_LOSS", E.EIO, "short read", "the dump file ends before the page it should hold"),
    Reason.CORRUPT_PAGE: Row(FaultError, "DATA_LOSS", E.EIO, "kvm_read: {strerror}", "the page is in the dump, but does not decompress"),
    Reason.NO_SUCH_SYMBOL: Row(SymbolNotFoundError, "NOT_FOUND", E.ENOENT, "{symbol}: no such symbol", "the image has no symbol of this name"),
    Reason.NO_SUCH_PROCESS: Row(ProcessError, "NOT_FOUND", E.ESRCH, None, "no process has this id"),
    Reason.NO_USER_MEMORY: Row(ProcessError, "FAILED_PRECONDITION", E.EINVAL, None, "a kernel thread or zombie, which has no memory of its own"),
    Reason.TASK_RUNNING: Row(ProcessError, "FAILED_PRECONDITION", E.EBUSY, None, "the stack of a task that runs, whose registers the image doesn't hold"),
    Reason.NO_SUCH_DESCRIPTOR: Row(DescriptorError, "NOT_FOUND", E.EBADF, "{strerror}", "the descriptor is unknown, closed, or somebody else's"),
    Reason.DESCRIPTOR_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EMFILE, None, "too many open descriptors"),
    Reason.CONNECTION_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EUSERS, None, "too many connections"),
    Reason.CALL_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EAGAIN, None, "too many calls under way at once"),
    Reason.STREAM_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EAGAIN, None, "too many streams under way at once"),
    Reason.BYTES_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EAGAIN, None, "too many bytes of answers that their clients have not taken yet"),
    Reason.RATE_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EAGAIN, None, "too many calls in a second"),
    Reason.WORKER_LIMIT: Row(LimitError, "RESOURCE_EXHAUSTED", E.EAGAIN, None, "too many images open at once"),
    Reason.WORKER_DIED: Row(UnavailableError, "UNAVAILABLE", E.EIO, None, "the image's worker process ended"),
    Reason.WORKER_HUNG: Row(UnavailableError, "UNAVAILABLE", E.EIO, None, "the image's worker process did not answer and was killed"),
    Reason.WORKER_MEMORY: Row(UnavailableError, "UNAVAILABLE", E.ENOMEM, None, "the image's worker process ran out of its memory"),
    Reason.WORKER_CPU: Row(LimitError, "RESOURCE_EXHAUSTED", E.EAGAIN, None, "the image's worker process has used up its processor time"),
    Reason.WRITE_DEAD: Row(UnsupportedError, "UNIMPLEMENTED", E.EROFS, "kvm_write not implemented for dead kernels", "a dump can't be written"),
    Reason.WRITE_READ_ONLY: Row(AccessError, "PERMISSION_DENIED", E.EBADF, "kvm_write: {strerror}", "the descriptor was opened read-only"),
    Reason.WRITES_OFF: Row(AccessError, "PERMISSION_DENIED", E.EROFS, _PATH, "writes to the running kernel are off in the configuration"),
    Reason.NO_FILES: Row(UnsupportedError, "FAILED_PRECONDITION", E.EINVAL, "kvm_open called with KVM_NO_FILES, can't use {call}", "the call needs kernel memory, and the descriptor was opened with KVM_NO_FILES"),
    Reason.LOCKDOWN: Row(SourceError, "FAILED_PRECONDITION", E.EPERM, _PATH, "kernel lockdown forbids the running kernel's memory"),
    Reason.STRICT_DEVMEM: Row(SourceError, "FAILED_PRECONDITION", E.EPERM, _PATH, "CONFIG_STRICT_DEVMEM forbids RAM through /dev/mem; use /proc/kcore (corefile None)"),
    Reason.NO_LIVE_SOURCE: Row(SourceError, "FAILED_PRECONDITION", E.ENOENT, _PATH, "this kernel or container has no /proc/kcore, or the daemon may not open it"),
    Reason.CHANGED: Row(UnavailableError, "ABORTED", E.EAGAIN, None, "the running kernel changed its lists faster than they could be read; try again"),
    Reason.SHUTTING_DOWN: Row(UnavailableError, "UNAVAILABLE", E.ESHUTDOWN, None, "the daemon is stopping"),
    Reason.DEADLINE: Row(DeadlineError, "DEADLINE_EXCEEDED", E.ETIMEDOUT, None, "the deadline passed"),
    Reason.CANCELLED: Row(CancelledError, "CANCELLED", E.ECANCELED, None, "the call was cancelled"),
    Reason.UNREACHABLE: Row(UnavailableError, "UNAVAILABLE", E.ECONNREFUSED, None, "no daemon answers on the target"),
    Reason.INTERNAL: Row(InternalError, "INTERNAL", E.EIO, None, "a fault of kvmd's own; see the daemon's log"),
}


def error(reason: Reason, message: str, **metadata: object) -> KvmError:
    """Build the exception of a reason.

    :param message: what happened, naming the thing and what to do.
    :param metadata: the dynamic parts of the message; ``address`` is an int.
    """
    words = {key: f"{value:#x}" if key == "address" else str(value) for key, value in metadata.items()}
    return TABLE[reason].kind(reason, message, words)


def from_wire(reason: str, message: str, metadata: Mapping[str, str]) -> KvmError:
    """Rebuild the exception from ErrorInfo; a reason of a newer daemon becomes a plain KvmError."""
    try:
        known = Reason(reason)
    except ValueError:
        return KvmError(Reason.INTERNAL, message, {**metadata, "reason": reason})
    return TABLE[known].kind(known, message, metadata)
