"""Reads that follow what they read: linked lists, strings."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence

from libkvm.bounds import address_number, length_number
from libkvm.calls import READ_C_STRINGS, WALK_LIST
from libkvm.convert import record
from libkvm.errors import Reason, error
from libkvm.handle import Handle
from libkvm.memory import space_number
from libkvm.records import CString, ListElement

_STRINGS = 16384  # of one request,
_BATCH = 16 << 20  # and what they may have room for
_LENGTH = 255


class Following(Handle):
    """What can be read by following pointers."""

    def walk_list(  # noqa: PLR0913 - what a list is
        self,
        head: int,
        *,
        link: int = 0,
        next: int = 0,  # noqa: A002 - the member's name
        offset: int = 0,
        length: int = 0,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Generator[ListElement]:
        """Walk a linked list of the kernel's in one call, and read some bytes of each element.

        The call begins with the first element asked for; closing the iterator ends the walk. A list ends with a pointer
        that is 0, or back at its head.

        :param head: where the pointer to the first link is: the address of a struct list_head, or of a pointer.
        :param link: where in an element its link is, through which it is in the list; in bytes, as all here.
        :param next: where in a link the pointer to the next one is: 8 walks lists of struct list_head backward.
        :param offset: where in an element the bytes are that are wanted.
        :param length: how many; at most 64 KiB.
        :param limit: the most elements, up to 262,144; a longer list ends there. None: 65,536, and one that is longer
            is an error.
        :param timeout: seconds until the last element; None: the client's ``long_timeout``.
        :raises FormatError: the list runs in a circle or doesn't end, after the elements before that.
        :raises FaultError: a link can't be read, after the elements before it.
        """
        request = WALK_LIST.request(
            descriptor=self._id, head=address_number(head), link=length_number(link, 2**32),
            next=length_number(next, 2**32), offset=length_number(offset, 2**32), length=length_number(length, 2**32),
            limit=length_number(limit or 0, 2**32),
        )  # fmt: skip
        session = self._session
        if limit == 0:
            return
        deadline = session.long_timeout if timeout is None else timeout
        more = False
        with contextlib.closing(session.stream(WALK_LIST, request, deadline)) as answers:
            for answer in answers:
                for element in answer.elements:
                    yield record(ListElement, element)
                more = more or answer.more
        if more and limit is None:
            raise error(Reason.CORRUPT_DATA, f"the list at {head:#x} is long or endless; give walk_list a limit")

    def strings(
        self,
        addresses: Iterable[int],
        max_length: int = _LENGTH,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> list[CString]:
        """Read many strings in few calls, each up to its NUL; each has its own outcome.

        :param addresses: where they begin: virtual addresses of the kernel, with ``physical`` physical ones, or with
            ``pid`` that process's.
        :param max_length: the most bytes of each without the NUL, up to 65,535.
        :param timeout: seconds to wait for each call of up to 16,384 strings; None: the client's.
        :return: a string for each address, in their order.
        """
        space, process = space_number(physical, pid)
        wanted = [address_number(address) for address in addresses]
        most = length_number(max_length, 2**32)
        if not most:
            raise error(Reason.BAD_ARGUMENT, "strings of no length")
        found: list[CString] = []
        at_once = max(min(_STRINGS, _BATCH // most), 1)
        for batch in _batches(wanted, at_once):
            request = READ_C_STRINGS.request(
                descriptor=self._id, addresses=batch, max_length=most, space=space, pid=process
            )
            answer = self._session.unary(READ_C_STRINGS, request, timeout)
            if len(answer.strings) != len(batch):
                raise error(Reason.INTERNAL, f"the daemon answered {len(answer.strings)} of {len(batch)}, and no error")
            found += [record(CString, string) for string in answer.strings]
        return found

    def string(
        self,
        address: int,
        max_length: int = _LENGTH,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Read a string up to its NUL, or ``max_length`` bytes of it; otherwise as :meth:`strings`.

        :raises FaultError: a byte of it can't be read.
        """
        [found] = self.strings([address], max_length, physical=physical, pid=pid, timeout=timeout)
        if found.error is not None:
            raise found.error
        return found.data


def _batches(addresses: Sequence[int], most: int) -> list[Sequence[int]]:
    return [addresses[at : at + most] for at in range(0, len(addresses), most)]
