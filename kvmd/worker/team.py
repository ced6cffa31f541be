"""A worker and its helpers (:mod:`kvmd.worker.helpers`), which unpack the pages of one read together.

A run of pages is cut into pieces. Each helper is given some, the worker unpacks others itself, and takes what the
helpers have done meanwhile: in any order, but each piece to its place, and all of it or nothing.
"""

from __future__ import annotations

import select
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from kvmd.images.base import Unpack
from kvmd.worker.helpers import PIECE, SLOTS, Helper

_TRIED = 16
"""One run in so many is unpacked in the way that was the slower one, to see whether it still is."""


class _Piece(NamedTuple):
    """Some pages of a run: as they are packed, and where they belong."""

    packed: Sequence[bytes]
    into: memoryview


class Team:
    """Unpacks pages, with helpers as long as there are any.

    :ivar wanted: whether somebody has asked for it: :meth:`take`.
    """

    def __init__(self, unpack: Unpack, helpers: Sequence[Helper]) -> None:
        """Make a team.

        :param unpack: what one process does.
        """
        self._unpack_here, self._helpers = unpack, list(helpers)
        self.wanted = False
        # Seconds for a byte, alone and with helpers: what is the quicker depends on how many processors are free.
        self._costs, self._runs = [0.0, 0.0], 0

    def take(self) -> Unpack:
        """See :attr:`kvmd.images.base.Files.unpacker`."""
        self.wanted = True
        return self._unpack

    def close(self) -> None:
        """Let the helpers go."""
        for helper in self._helpers:
            helper.close()
        self._helpers.clear()

    def _unpack(self, codec: int, size: int, packed: Sequence[bytes], into: memoryview) -> None:
        step = PIECE // size
        if not codec or not self._helpers or len(packed) <= step:
            self._unpack_here(codec, size, packed, into)
            return
        self._runs += 1
        way = (self._costs[1] < self._costs[0]) ^ (self._runs % _TRIED == 0)
        began = time.perf_counter()
        try:
            if way:
                bounds = [(at, min(at + step, len(packed))) for at in range(0, len(packed), step)]
                pieces = [_Piece(packed[low:high], into[low * size : high * size]) for low, high in bounds]
                self._together(codec, size, pieces)
            else:
                self._unpack_here(codec, size, packed, into)
        finally:
            for helper in self._helpers:
                helper.give_up()
            took = (time.perf_counter() - began) / max(1, sum(map(len, packed)))
            self._costs[way] += (took - self._costs[way]) / 4 if self._costs[way] else took

    def _together(self, codec: int, size: int, pieces: Sequence[_Piece]) -> None:
        """Unpack pieces. What a helper can't unpack, or isn't done with soon after all else, is unpacked here."""
        todo, took = deque(range(len(pieces))), 0.0
        while True:
            for helper in list(self._helpers):
                self._deal(helper, codec, size, pieces, todo)
            if not todo:
                busy = [helper for helper in self._helpers if helper.busy]
                if not busy:
                    return
                if select.select(busy, [], [], took)[0]:
                    continue
                todo.extend(piece for helper in busy for piece in helper.give_up())
            began = time.perf_counter()
            piece = pieces[todo.popleft()]
            self._unpack_here(codec, size, piece.packed, piece.into)
            took = time.perf_counter() - began

    def _deal(self, helper: Helper, codec: int, size: int, pieces: Sequence[_Piece], todo: deque[int]) -> None:
        """Take from a helper what it has done, and give it more."""
        bad: list[int] = []
        try:
            for piece, pages in helper.collect():
                if pages is None:
                    bad.append(piece)
                else:
                    pieces[piece].into[:] = pages
            # Towards the end one piece at a time, or the others would be done before it.
            while todo and not bad and helper.room(SLOTS if len(todo) > 1 + len(self._helpers) else 1):
                piece = todo.popleft()
                helper.ask(piece, codec, size, pieces[piece].packed)
        except OSError as failure:
            sys.stderr.write(f"goes on without a helper: {failure}\n")
            self._helpers.remove(helper)
            bad += helper.give_up()
            helper.close()
        todo.extendleft(bad)
