"""Symbols against /proc/kallsyms of the guest."""

from __future__ import annotations

import lzma
from collections import Counter
from typing import Any

import pytest

from images import DATA, fixture
from kernel_truth import read
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.symbols import KERNEL, N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT, Sections, vmcoreinfo_lookup
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import process_pb2
from kvmd.v1 import symbol_pb2 as pb

# By the letter of nm(1); W and V are weak, of code or data.
KINDS = {"t": {N_TEXT}, "d": {N_DATA}, "r": {N_DATA, N_BSS}, "b": {N_BSS, N_DATA}, "a": {N_ABS}, "w": {N_TEXT, N_DATA}}


def kallsyms() -> list[list[str]]:
    """The guest's /proc/kallsyms: (address, letter, name) each."""
    with lzma.open(DATA / "qemu/kallsyms.xz", "rt") as file:
        return [line.split()[:3] for line in file]


def test_the_truths_symbols(dump: Any) -> None:
    names = list(dump.truth["kallsyms"])
    found = dump.image.symbols(names)
    assert {s.name: s.value for s in found} == dump.truth["kallsyms"]
    assert all(s.found and s.source == pb.SYMBOL_SOURCE_KALLSYMS and not s.module for s in found)
    assert dump.image.kernel_name() == "kallsyms"


def test_all_of_kallsyms(qemu: Any) -> None:
    rows = kallsyms()
    times = Counter(name for _, _, name in rows)
    rows = [row for row in rows if times[row[2]] == 1]
    assert len(rows) > 28_000
    found = qemu.image.symbols([name for _, _, name in rows])
    assert [s.value for s in found] == [int(address, 16) for address, _, _ in rows]
    for symbol, (_, letter, _) in zip(found, rows, strict=True):
        if letter.lower() in KINDS:
            assert symbol.n_type & ~N_EXT in KINDS[letter.lower()], (symbol, letter)
            assert symbol.n_type & N_EXT == (letter.isupper() or letter in "wv"), (symbol, letter)


def test_a_name_of_several_symbols_is_one_of_them(qemu: Any) -> None:
    rows = kallsyms()
    name, _ = Counter(row[2] for row in rows).most_common(1)[0]
    (symbol,) = qemu.image.symbols([name])
    assert symbol.value in {int(row[0], 16) for row in rows if row[2] == name}


def test_modules_have_symbols(debian: Any) -> None:
    modules = {line.split()[0]: line.split() for line in debian.truth["modules"].splitlines()}
    names = ["virtio_check_driver_offered_feature", "vring_create_virtqueue", "vp_modern_probe", "virtio_pci_driver"]
    for symbol in debian.image.symbols(names):
        base, size = int(modules[symbol.module][5], 16), int(modules[symbol.module][1])
        assert symbol.found
        assert base <= symbol.value < base + 4 * size
        assert symbol.size
        assert symbol.n_type & ~N_EXT == (N_DATA if symbol.name == "virtio_pci_driver" else N_TEXT)


def test_names_that_are_not_there(dump: Any) -> None:
    missing, twice, again = dump.image.symbols(["no_such_symbol", "init_task", "init_task"])
    assert missing == pb.Symbol(name="no_such_symbol")
    assert twice == again
    assert dump.image.symbols([]) == []
    assert not dump.image.symbols([""])[0].found


def test_without_kallsyms_vmcoreinfo_answers(from_bytes: Any) -> None:
    path, truth = fixture("micro/zstd")
    image = from_bytes(path.read_bytes())
    uts, task = image.symbols(["init_uts_ns", "init_task"])
    assert (uts.value, uts.source) == (truth["kallsyms"]["init_uts_ns"], pb.SYMBOL_SOURCE_VMCOREINFO)
    assert not task.found
    assert image.kernel_name() == "vmcoreinfo"
    for call in (
        lambda: list(image.processes(process_pb2.GetProcsRequest())),
        lambda: list(image.log()),
        lambda: image.strings(1, process_pb2.STRINGS_KIND_ARGUMENTS, 0),
    ):
        with pytest.raises(KvmError) as caught:
            call()
        assert caught.value.reason is Reason.NO_SYMBOLS


def test_vmcoreinfo_lines() -> None:
    text = (
        b"OSRELEASE=6.1\nSYMBOL(a)=ff\nSYMBOL(b)=zz\nSYMBOL(_stext)=10\nNUMBER(n)=-5\nOFFSET(s.m)=7\nBUILD-ID=AB\nx\n"
    )
    info = VmcoreInfo.parse(text + b"SYMBOL(c)=1ffffffffffffffff\nKERNELOFFSET=1e00000\n\xff=\xff\n")
    assert info.symbols() == {"a": 255, "_stext": 16}
    assert (info.number("n"), info.offset("s.m"), info.release) == (-5, 7, "6.1")
    assert (info.build_id, info.kaslr_offset, info.number("a")) == ("ab", 0x1E00000, None)
    found = vmcoreinfo_lookup(info)("_stext")
    assert found is not None
    assert found.n_type == N_TEXT | N_EXT
    assert vmcoreinfo_lookup(info)("b") is None


def test_data_that_kallsyms_calls_text_is_data() -> None:
    """Debian's 7.2 has a T for init_task."""
    base = 0xFFFFFFFF81000000
    bounds = {"_text": base, "_etext": base + 0x1000, "_sdata": base + 0x2000, "_edata": base + 0x3000}
    sections = Sections(lambda name: bounds.get(name, 0))
    assert sections.n_type(base + 0x2000, code=True, external=True) == N_DATA | N_EXT
    assert sections.n_type(base + 0x10, code=True, external=False) == N_TEXT
    assert sections.n_type(base + 0x4000, code=True, external=False) == N_TEXT  # .exit.text and its like


def test_a_name_at_an_address_is_no_mark_of_the_linker(qemu: Any) -> None:
    """__schedule begins where its section does."""
    prog = qemu.image.kernel.prog
    start, function = (qemu.image.kernel.address(name) for name in ("__sched_text_start", "__schedule"))
    if start != function:
        pytest.skip("this build has something between")
    assert prog.symbol(function + 8).name == "__schedule"


@pytest.mark.parametrize("folder", ["qemu", "linux-5.10", "linux-5.15"])
def test_of_names_at_one_address_the_kernels_first_one_counts(folder: str) -> None:
    """Which its own traces show: the first in /proc/kallsyms."""
    with lzma.open(DATA / folder / "kallsyms.xz", "rt") as file:
        rows = [line.split()[:3] for line in file]
    by_address: dict[int, list[str]] = {}
    for address, _, name in rows:
        by_address.setdefault(int(address, 16), []).append(name)
    shared = {address: names for address, names in by_address.items() if len(names) > 1 and address >= KERNEL}
    prog = read(fixture(f"{folder}/vmcore.kdump").path).kernel.prog
    found = {address: symbol.name for address in shared for symbol in prog.symbols(address)}
    assert len(found) > 200  # the others are marks of the end of something, and hold nothing
    assert found == {address: shared[address][0] for address in found}
