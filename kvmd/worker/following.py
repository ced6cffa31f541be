"""Reads that follow what they read, over any image: linked lists and strings. All that is read is hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import Image
from kvmd.v1 import batch_pb2, memory_pb2
from kvmd.worker.protocol import encode_error

USUAL_LIMIT = 1 << 16
USUAL_LENGTH = 255
_TOGETHER = 2048
"""A link and the wanted bytes that are so near to each other are one read."""
_PAGE = 4096
_KERNEL = memory_pb2.ADDRESS_SPACE_KERNEL
_MASK = (1 << 64) - 1


class ListWalk:
    """The elements of a list, in its order.

    :ivar more: once it has ended, whether there are more than were wanted.
    """

    def __init__(self, image: Image, request: batch_pb2.WalkListRequest) -> None:
        self._image, self._request = image, request
        self.more = False
        # From a link: where the pointer to the next one is, where the wanted bytes begin, and what holds both.
        self._next, self._data = request.next, request.offset - request.link
        low = min(self._next, self._data)
        high = max(self._next + 8, self._data + request.length)
        self._span = (low, high - low) if request.length and high - low <= _TOGETHER else None

    def __iter__(self) -> Iterator[batch_pb2.ListElement]:
        """Walk.

        :raises KvmError: CORRUPT_DATA for a circle; the fault of a link.
        """
        head, left, seen = self._request.head, self._request.limit or USUAL_LIMIT, set[int]()
        link = self._pointer(head + self._next if self._next else head)
        while link not in (0, head):
            if not left:
                self.more = True
                return
            if link in seen:
                raise error(Reason.CORRUPT_DATA, f"the list at {head:#x} runs in a circle", address=link)
            seen.add(link)
            left -= 1
            element, following = self._element(link)
            yield element
            if isinstance(following, KvmError):
                raise following
            link = following

    def _element(self, link: int) -> tuple[batch_pb2.ListElement, int | KvmError]:
        """An element, and the next link, or why there is none to be read."""
        address = link - self._request.link & _MASK
        if self._span is not None:
            low, size = self._span
            try:
                data = self._read(link + low, size)
            except KvmError:  # one of both may be there
                pass
            else:
                at, wanted = self._next - low, self._data - low
                following = int.from_bytes(data[at : at + 8], self._image.byte_order)
                data = data[wanted : wanted + self._request.length]
                return batch_pb2.ListElement(address=address, data=data), following
        element = batch_pb2.ListElement(address=address)
        if self._request.length:
            data, failure = readable(self._read, link + self._data & _MASK, self._request.length)
            element.data = data
            if failure is not None:
                element.error.CopyFrom(encode_error(failure))
        try:
            return element, self._pointer(link + self._next)
        except KvmError as failure:
            return element, failure

    def _read(self, address: int, length: int) -> bytes:
        return self._image.read(address & _MASK, length, _KERNEL)

    def _pointer(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), self._image.byte_order)


def readable(read: Callable[[int, int], bytes], address: int, length: int) -> tuple[bytes, KvmError | None]:
    """What can be read of a range, and why that isn't all."""
    try:
        return read(address, length), None
    except KvmError as failure:
        count = int(failure.metadata.get("readable", "0"))
        return read(address, count) if count else b"", failure


def c_string(read: Callable[[int, int], bytes], address: int, most: int) -> batch_pb2.CString:
    """Read a string up to its NUL, or as much as is wanted, a page at a time: the next one may not be there."""
    found = bytearray()
    while len(found) <= most:
        at = address + len(found) & _MASK
        data, failure = readable(read, at, min(_PAGE - at % _PAGE, most + 1 - len(found)))
        end = data.find(b"\0")
        if end >= 0:
            return batch_pb2.CString(data=bytes(found + data[:end]), whole=True)
        found += data
        if failure is not None and len(found) < most:
            return batch_pb2.CString(data=bytes(found), error=encode_error(failure))
        if failure is not None:
            break
    return batch_pb2.CString(data=bytes(found[:most]))
