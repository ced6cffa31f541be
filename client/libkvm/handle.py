"""The life of an opened image: from the answer of Open to Close."""

from __future__ import annotations

import contextlib
import warnings
from types import TracebackType
from typing import Self

from kvmd.v1.kvm_service_pb2 import OpenFilesResponse, OpenResponse
from libkvm.calls import CLOSE
from libkvm.errors import DescriptorError, Reason, UnavailableError, daemon_ended, error
from libkvm.session import Session, Unpicklable


class Handle(Unpicklable):
    """A descriptor and the session that it lives in; holds no other state of a call."""

    def __init__(
        self, session: Session, opened: OpenResponse | OpenFilesResponse, source: str, *, write: bool
    ) -> None:
        self._shared = session
        self._daemon = session.met(opened.daemon)
        self._id = opened.descriptor
        self._source = source
        self._write = write
        self._name = opened.kernel_name
        self._dump = opened.dump
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether this, or the client that opened it, was closed."""
        return self._closed or self._shared.closed

    @property
    def kernel_name(self) -> str:
        """What kvm_getkernelname(3) answers: the name of the namelist in use."""
        return self._name

    def close(self) -> None:
        """Close the image. Idempotent; succeeds too where the daemon or the descriptor is gone already.

        :raises DeadlineError: the daemon did not answer; it closes the image when the client is closed.
        """
        if self.closed:
            return
        self._closed = True
        if self._daemon.ended:
            return
        with contextlib.suppress(DescriptorError, UnavailableError):
            self._shared.unary(CLOSE, CLOSE.request(descriptor=self._id))

    @property
    def _session(self) -> Session:
        if self._closed:
            raise error(Reason.NO_SUCH_DESCRIPTOR, f"this Kernel of {self._source} is closed; open it again")
        if self._daemon.ended:
            raise daemon_ended(self._shared.target)
        return self._shared

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # Nothing is sent from here: a finalizer may run anywhere, and the connection's end closes it anyway.
        if not self._closed and self._shared.ours_to_close:
            warnings.warn(f"libkvm.Kernel of {self._source} was not closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        mode = "read-write" if self._write else "read-only"
        return f"<libkvm.Kernel of {self._source}, {mode}{', closed' if self.closed else ''}>"
