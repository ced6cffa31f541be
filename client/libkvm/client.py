"""The connection to a daemon."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from kvmd.v1.kvm_service_pb2 import OpenRequest, OpenResponse, OpenWatchedResponse
from libkvm.calls import OPEN, OPEN_WATCHED
from libkvm.errors import Reason, error
from libkvm.kernel import Kernel
from libkvm.names import KVM_ANY_SWAP, KVM_NO_FILES, Name, Swap, open_request, source_name
from libkvm.packed import available
from libkvm.session import LONG_TIMEOUT, TIMEOUT, Session, Unpicklable, default_target
from libkvm.transports import TlsFiles, transport

_O_RDWR = 2
_WATCHED_TIMEOUT = 3600.0


def connect(  # noqa: PLR0913 - all but the target by keyword
    target: str | None = None,
    *,
    timeout: float = TIMEOUT,
    long_timeout: float = LONG_TIMEOUT,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    compress: bool = False,
) -> Client:
    """Make a client of a daemon; it connects at its first call.

    :param target: ``unix:/path``, or ``dns:///host:port`` of a daemon on another host; None: the environment's
        KVMD_TARGET, or ``unix:/run/kvmd/kvmd.sock``.
    :param timeout: the default deadline of a call, in seconds.
    :param long_timeout: the same of the calls whose work grows with the image: open, processes and log.
    :param tls_ca: for another host: the file of authorities that its certificate may come from; None: KVMD_TLS_CA.
    :param tls_cert: this client's certificate, by which that daemon knows it; None: KVMD_TLS_CERT.
    :param tls_key: the private key of that; None: KVMD_TLS_KEY.
    :param compress: have memory compressed on its way, which pays where the line is slow; takes ``libkvm[zstd]``.
    :raises RequestError: the target is of no kind that libkvm knows, or a certificate can't be used.
    :raises UnsupportedError: nothing here can decompress.
    """
    if compress and not available():
        raise error(Reason.UNSUPPORTED, "compress needs the package zstandard: install libkvm[zstd]")
    tls = TlsFiles(tls_ca, tls_cert, tls_key)
    return Client(Session(transport(target or default_target(), tls), timeout, long_timeout, compress=compress))


class Client(Unpicklable):
    """A connection to a daemon, which owns the kernels opened over it; see kvmd(8).

    A context manager: leaving it closes the connection and every kernel.
    Safe to use from several threads.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def target(self) -> str:
        """Where the daemon is."""
        return self._session.target

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._session.closed

    def open(  # noqa: PLR0913 - all that kvm_open(3) takes, most of it by keyword
        self,
        corefile: Name | None = None,
        execfile: Name | None = None,
        swapfile: Swap = None,
        *,
        write: bool = False,
        no_files: bool = False,
        any_swap: bool = False,
        dump_offset: int | None = None,
        timeout: float | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Kernel:
        """Open the running kernel or a crash dump; see kvm_open(3).

        :param corefile: the dump; None: the running kernel; ``/dev/mem``: its physical memory. A relative name
            is sought here first, then in the daemon's dump directories.
        :param execfile: the kernel's file with symbols or DWARF; None: what the image itself holds.
        :param swapfile: the swap areas of a dump: a name, several joined by ``:``, or a sequence of names.
        :param write: ask for the right to write; a crash dump opens, but is never written.
        :param no_files: open nothing at all, and see of processes, load, CPU time and swap what /proc would show
            this user; nothing else then works, and all other arguments are ignored. See KVM_NO_FILES in kvm_open(3).
        :param any_swap: believe the swap images, even if nothing in the dump shows that they are of its moment.
        :param dump_offset: where in a NetBSD dump device's image the kernel left its dump, in bytes; see kvm_dump(3).
            None: the dump is a file that savecore(8) wrote, or another system's.
        :param timeout: seconds to wait; None: the client's ``long_timeout``, and with ``progress`` an hour.
        :param progress: is called now and then with how many bytes of a dump have been looked at, and of how many: of
            one without VMCOREINFO all are (some seconds for a GiB).
        :raises SourceError: a file can't be opened.
        :raises FormatError: it is not what it should be.
        :raises AccessError: the policy forbids it.
        :raises UnavailableError: no daemon answers.
        """
        session = self._session
        flags = KVM_NO_FILES if no_files else (_O_RDWR if write else 0) | (KVM_ANY_SWAP if any_swap else 0)
        local = session.local
        request = open_request(corefile, execfile, swapfile, flags, local=local, dump_offset=dump_offset)
        if progress is None:
            answer = session.unary(OPEN, request, session.long_timeout if timeout is None else timeout)
        else:
            answer = self._watched(request, progress, _WATCHED_TIMEOUT if timeout is None else timeout)
        return Kernel(session, answer, source_name(request), write=bool(request.flags & _O_RDWR))

    def _watched(self, request: OpenRequest, progress: Callable[[int, int], object], timeout: float) -> OpenResponse:
        answer = OpenWatchedResponse()
        for answer in self._session.stream(OPEN_WATCHED, request, timeout):
            if not answer.HasField("opened"):
                progress(answer.done_bytes, answer.total_bytes)
        return answer.opened

    def close(self) -> None:
        """Close the connection and every kernel opened over it. Idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<libkvm.Client of {self.target}{', closed' if self.closed else ''}>"
