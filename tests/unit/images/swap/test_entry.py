"""Entries against what the kernel's own macros write, of four kernels, two architectures and every mix of options.

tests/data/swap-entries.json is made by tools/swap_vectors.py from the kernels' headers.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import DATA
from kvmd.images.linux.swap.entry import LAYOUTS, Decoder, Kind, Options, slot_of
from kvmd.images.linux.vmcoreinfo import release_of

VECTORS = json.loads((DATA / "swap-entries.json").read_text())
KERNELS = [(kernel, machine) for kernel in VECTORS for machine in ("x86_64", "aarch64")]
RELEASES = [(4, 19), (5, 4), (5, 10), (5, 19), (6, 1), (6, 2), (6, 9), (6, 10), (6, 12), (6, 15), (7, 2)]

KNOWN = [(machine, since) for machine in LAYOUTS for since in RELEASES if since >= LAYOUTS[machine][-1][0]]


def options(configs: list[str]) -> Options:
    return Options(
        memory_failure="CONFIG_MEMORY_FAILURE" in configs,
        migration="CONFIG_MIGRATION" in configs,
        device_private="CONFIG_DEVICE_PRIVATE" in configs,
        userfaultfd="CONFIG_PTE_MARKER" in configs,
    )


@pytest.mark.parametrize(("kernel", "machine"), KERNELS, ids=lambda v: v if isinstance(v, str) else v["release"])
def test_slots_as_the_kernel_writes_them(kernel: dict[str, Any], machine: str) -> None:
    decoder = Decoder(machine, release_of(kernel["release"]), Options())
    for number, offset, entry in kernel["slots"][machine]:
        found = decoder.decode(entry)
        assert (found.kind, found.type, found.offset) == (Kind.SWAP, number, offset)
        assert decoder.layout.encode(number, offset) == entry


@pytest.mark.parametrize("kernel", VECTORS, ids=lambda kernel: kernel["release"])
def test_what_is_reserved_as_the_kernel_counts_it(kernel: dict[str, Any]) -> None:
    for mix in kernel["reserved"]:
        decoder = Decoder("x86_64", release_of(kernel["release"]), options(mix["configs"]))
        assert [decoder.areas] == mix["types"]["areas"], mix
        told = {number: kind for kind, numbers in mix["types"].items() if kind != "areas" for number in numbers}
        for number in range(32):
            kind = decoder.decode(decoder.layout.encode(number, 77)).kind
            assert kind.value == told.get(number, "swap"), (mix, number)


@given(st.sampled_from(KNOWN), st.integers(0, 22), st.integers(0, (1 << 50) - 1), st.integers(0, 3))
def test_what_is_encoded_is_decoded_whatever_the_flags(
    known: tuple[str, tuple[int, int]], number: int, offset: int, flags: int
) -> None:
    decoder = Decoder(*known, Options(device_private=True))
    layout = decoder.layout
    entry = layout.encode(number, offset)
    assert entry < 1 << 64
    assert not entry & 1  # not present
    low = min(layout.type_shift, layout.offset_shift)
    found = decoder.decode(entry | flags << 1 & (1 << low) - 1)  # soft dirty, userfaultfd's, exclusive
    assert (found.type, found.offset) == (number, offset)


@given(st.sampled_from(KNOWN), st.integers(1, (1 << 64) - 1))
def test_every_word_is_something(known: tuple[str, tuple[int, int]], entry: int) -> None:
    decoder = Decoder(*known, Options())
    found = decoder.decode(entry)
    assert found.kind in Kind
    assert 0 <= found.offset < 1 << decoder.layout.offset_bits


@given(st.integers(0, (1 << 40) - 1), st.integers(0, 3))
def test_flags_above_the_frame_of_a_migrating_page(frame: int, flags: int) -> None:
    decoder = Decoder("x86_64", (6, 12), Options(), frame_bits=40)
    entry = decoder.layout.encode(decoder.areas + 1, frame | flags << 40)  # SWP_MIG_YOUNG, SWP_MIG_DIRTY
    assert (decoder.decode(entry).kind, decoder.decode(entry).offset) == (Kind.MIGRATION, frame)


@given(st.integers(0, 31), st.integers(0, (1 << 50) - 1))
def test_slots_in_caches(number: int, offset: int) -> None:
    # As swp_entry() has it: include/linux/swapops.h, Linux 6.12.
    assert slot_of(number << 58 | offset) == (number, offset)


def test_the_fix_of_l1tf_in_an_older_kernel() -> None:
    old, mended = (Decoder("x86_64", (4, 14), Options(), mended=mended) for mended in (False, True))
    assert not old.layout.inverted
    assert mended.layout.inverted
    assert old.decode(1 << 14 | 3 << 9).offset == 1
    assert old.decode(1 << 14 | 3 << 9).type == 3


@pytest.mark.parametrize(
    ("machine", "release"), [("x86_64", (4, 7)), ("x86_64", (0, 0)), ("riscv64", (6, 12)), ("s390x", (5, 15))]
)
def test_layouts_that_are_not_known(machine: str, release: tuple[int, int]) -> None:
    with pytest.raises(LookupError):
        Decoder(machine, release, Options())


def test_releases() -> None:
    texts = ("6.1.0-56-amd64", "7.2.13+deb14", "5.10", "x", "", "6")
    assert [release_of(text) for text in texts] == [(6, 1), (7, 2), (5, 10), (0, 0), (0, 0), (0, 0)]


def test_the_newest_layout_comes_first() -> None:
    for layouts in LAYOUTS.values():
        assert [since for since, _ in layouts] == sorted((since for since, _ in layouts), reverse=True)
    bits = {machine: {layout.offset_bits for _, layout in layouts} for machine, layouts in LAYOUTS.items()}
    assert bits == {"x86_64": {50}, "aarch64": {50}, "s390x": {52}}
