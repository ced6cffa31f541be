"""The pages that the kernel's page tables map."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from libkvm.bounds import address_number
from libkvm.calls import WALK_PAGES
from libkvm.convert import record
from libkvm.handle import Handle
from libkvm.records import Page

_PATIENCE = 60  # times the long timeout: a walk is as slow as who looks at its pages


class Pages(Handle):
    """What can be seen of an image's page tables."""

    def pages(self, start: int = 0, *, timeout: float | None = None) -> Generator[Page]:
        """Walk the kernel's page tables in ascending order of virtual address; see kvm_walk_pages(3).

        The call begins with the first page asked for; closing the iterator ends the walk.

        :param start: the virtual address to begin with; 0: the kernel's half of the address space.
        :param timeout: seconds until the last page; None: 60 times the client's ``long_timeout``.
        :raises UnsupportedError: the image has no kernel memory.
        """
        session = self._session
        request = WALK_PAGES.request(descriptor=self._id, start=address_number(start))
        deadline = session.long_timeout * _PATIENCE if timeout is None else timeout
        with contextlib.closing(session.stream(WALK_PAGES, request, deadline)) as answers:
            for answer in answers:
                for page in answer.pages:
                    yield record(Page, page)
