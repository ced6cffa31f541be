"""Damaged page tables and banners: whatever memory holds, at most what agrees with it is found, in bounded time.

``KVMD_FUZZ_INPUTS`` says how many inputs.
"""

from __future__ import annotations

import os
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.images.linux.scan.retrace import LAYOUTS, Layout
from unit.images.scan.test_roots import Made, made

COUNT = int(os.environ.get("KVMD_FUZZ_INPUTS", "200"))
LONGEST = 5.0  # seconds for one input
ALL = [layout for layouts in LAYOUTS.values() for layout in layouts]


def damage(rng: random.Random, it: Made) -> None:
    """Change a few entries, likeliest of the tables that matter."""
    places = list(it.tables.pages)
    for _ in range(rng.choice((1, 1, 4, 64))):
        page = rng.choice((it.tables.root, rng.choice(places)))
        entry = rng.choice((0, 1, 3, 0x63, 0xE3, 0x401))
        value = rng.choice((rng.choice(places) | entry, entry, rng.getrandbits(64), (1 << 64) - 1))
        it.tables.word(page + 8 * rng.randrange(it.tables.paging.page_size // 8), value)


@settings(max_examples=COUNT, deadline=None)
@given(st.sampled_from(ALL), st.integers(0, 1 << 32))
def test_damaged(chosen: Layout, seed: int) -> None:
    rng = random.Random(seed)
    it = made(chosen.paging, rng.randrange(100), rng.randrange(30), rng.randrange(30))
    damage(rng, it)
    started = time.monotonic()
    for root in chosen.roots(it.tables.read, it.tables.runs, it.image):
        assert root.physical in it.tables.pages
        assert root.maps(it.image.place)
        assert root.maps(root.physical)
        for place in (root.physical, it.image.place):
            assert root.tables.translate(root.physical, place + root.linear).physical == place
    assert time.monotonic() - started < LONGEST
