"""What objects must be: a function each, true if an address can only be that object's.

Sources are named by kernel file; the layouts are the kernel's own types.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from drgn import sizeof

from kvmd.images.linux.objects.probe import Probe
from kvmd.images.linux.symbols import KERNEL

Check = Callable[[Probe, int], bool]

_TASK, _NET = "struct task_struct", "struct net"
_UTS_FIELD = 65  # __NEW_UTS_LEN + 1
_MAX_SWAPFILES = 32
_SPACE_PAGES = 1 << 14  # SWAP_ADDRESS_SPACE_PAGES (mm/swap.h)
_ROWS, _MOST_ROWS = 128, 1 << 24  # of ORC, that are looked at
_ORC_REGISTERS = 9  # ORC_REG_SP_INDIRECT, the highest in use
_ROOTS = 2048  # of sections, that are looked at
_SECTION_PRESENT, _SECTION_FLAGS = 1, 1 << 6  # of section_mem_map (include/linux/mmzone.h): and what is no flag
_RING_BITS = 32  # log_buf_len is 2 GiB at most
_RECORD_NUMBER = (1 << 62) - 1  # of state_var, whose two highest bits are a state (printk_ringbuffer.h)
_LONGEST_BOOT = 1 << 40  # jiffies


def init_task(probe: Probe, at: int) -> bool:
    """init/init_task.c: the first idle task, its own parent, head of the list of all tasks."""
    own = all(probe.member(_TASK, name, at) == at for name in ("parent", "real_parent", "group_leader"))
    zero = not any(probe.member(_TASK, name, at) for name in ("pid", "tgid", "mm"))
    offset = probe.offset(_TASK, "tasks.next")
    return own and zero and all(probe.member(_TASK, "pid", task) > 0 for task in probe.ring(at + offset, offset))


def banner(probe: Probe, at: int) -> bool:
    """init/version.c: one line, which ends with what uname -v says, the fourth string of init_uts_ns."""
    name = probe.address("init_uts_ns") + (probe.kernel.info.offset("uts_namespace.name") or 0)
    version = probe.text(name + 3 * _UTS_FIELD, _UTS_FIELD)
    text = probe.kernel.memory.kernel(at, 512).split(b"\0")[0]
    return bool(text.endswith(b") " + version + b"\n") and text.count(b"\n") == 1)


def init_mm(probe: Probe, at: int) -> bool:
    """mm/init-mm.c: the kernel's code bounds (setup_initial_init_mm) beside its page tables."""
    start, end = (probe.member("struct mm_struct", name, at) for name in ("start_code", "end_code"))
    return bool(0 <= probe.address("_stext") - start <= 1 << 21 and end == probe.address("_etext"))


def named_list(tag: str, link: str, name: str, *, empty: bool = False) -> Check:
    """A list of structs that have a name, in themselves or behind pointers.

    :param empty: whether an empty list counts, which looks like any other.
    :param name: members to follow, the last of which is an array of char, or a pointer if it begins with ``*``.
    """
    *path, (holder, last) = (part.split(".", 1) for part in name.split(" > "))

    def check(probe: Probe, at: int) -> bool:
        entries = list(probe.ring(at, probe.offset(tag, link)))
        for entry in entries:
            place = entry
            for through, member in path:
                place = probe.member(f"struct {through}", member, place)
            if last.startswith("*"):
                probe.text(probe.member(f"struct {holder}", last[1:], place))
            else:
                probe.text(place + probe.offset(f"struct {holder}", last))
        return bool(entries) or empty

    return check


def net(probe: Probe, at: int) -> bool:
    """A struct net: its loopback device is ``lo``."""
    device = probe.member(_NET, "loopback_dev", at)
    return probe.text(device + probe.offset("struct net_device", "name")) == b"lo"


def net_list(probe: Probe, at: int) -> bool:
    """net/core/net_namespace.c: all network namespaces, the first of which is the kernel's own init_net."""
    found = list(probe.ring(at, probe.offset(_NET, "list.next")))
    return bool(found) and probe.image.holds(found[0]) and net(probe, found[0])


def init_pid_ns(probe: Probe, at: int) -> bool:
    """kernel/pid.c: the pid namespace without a parent, whose reaper is process 1."""
    tag = "struct pid_namespace"
    reaper = probe.member(tag, "child_reaper", at)
    top = not probe.member(tag, "parent", at) and not probe.member(tag, "level", at)
    return top and probe.member(_TASK, "pid", reaper) == 1


def possible_mask(probe: Probe, at: int) -> bool:
    """kernel/cpu.c: the CPUs that have per-CPU variables."""
    return at % 8 == 0 and probe.word(at) in probe.cpus()


def mask(probe: Probe, at: int) -> bool:
    """kernel/cpu.c: a mask of CPUs that are possible, too, with the boot CPU in it."""
    bits = _bits(probe, at)
    return at % 8 == 0 and bool(bits & 1) and not bits & ~_bits(probe, probe.address("__cpu_possible_mask"))


def _bits(probe: Probe, at: int) -> int:
    return probe.word(at, sizeof(probe.kernel.prog.type("struct cpumask")))


def nr_cpu_ids(probe: Probe, at: int) -> bool:
    """kernel/smp.c: one more than the highest possible CPU."""
    number = probe.word(at, 4)
    if at % 4 or not 0 < number <= 1 << 13:
        return False
    words = probe.words(probe.address("__cpu_possible_mask"), -(-number // 64))
    return sum(word << 64 * i for i, word in enumerate(words)).bit_length() == number


def taints(probe: Probe, at: int) -> bool:
    """kernel/panic.c: bits, of which there are 20 or so."""
    return at % 8 == 0 and probe.word(at) < 1 << 24


def loads(probe: Probe, at: int) -> bool:
    """kernel/sched/loadavg.c: three numbers, the number of tasks at most (FIXED_1 is 2048)."""
    return at % 8 == 0 and all(word < 2048 << 22 for word in probe.words(at, 3))


def jiffies(probe: Probe, at: int) -> bool:
    """kernel/time/timer.c: begins five minutes before it would have 32 bits no more (INITIAL_JIFFIES)."""
    return at % 8 == 0 and (1 << 32) - 300_000 <= probe.word(at) < _LONGEST_BOOT


def flag(probe: Probe, at: int) -> bool:
    """A number that is 0 or 1."""
    return at % 4 == 0 and probe.word(at, 4) <= 1


def pages(probe: Probe, at: int) -> bool:
    """A count of pages of RAM: no more than the pages that can be, and more than nothing."""
    return at % 8 == 0 and 1 << 8 < probe.word(at) < 1 << 40


def clocks(probe: Probe, at: int) -> bool:
    """kernel/time/timekeeping.c: a sequence counter, then a struct timekeeper that reads one named clock."""
    if probe.has("struct tk_data"):
        return False
    keeper = at + 8  # seqcount_raw_spinlock_t has 4 bytes, or 8 and more where locks are debugged
    return _reads_a_clock(probe, keeper)


def clocks_since_6_13(probe: Probe, at: int) -> bool:
    """The same: an array of struct tk_data, one for each clock that there is."""
    return _reads_a_clock(
        probe,
        at
        + probe.offset("struct tk_data", "timekeeper.tkr_mono.clock")
        - probe.offset("struct timekeeper", "tkr_mono.clock"),
    )


def _reads_a_clock(probe: Probe, keeper: int) -> bool:
    clock = probe.member("struct timekeeper", "tkr_mono.clock", keeper)
    same = clock == probe.member("struct timekeeper", "tkr_raw.clock", keeper)
    return same and bool(probe.text(probe.member("struct clocksource", "name", clock)))


def swap_areas(probe: Probe) -> list[int]:
    """The addresses of the kernel's swap_info_structs."""
    count = probe.word(probe.address("nr_swapfiles"), 4)
    return list(probe.words(probe.address("swap_info"), min(count, _MAX_SWAPFILES)))


def swap_info(probe: Probe, at: int) -> bool:
    """mm/swapfile.c: pointers to areas, each of which knows its number; no more than there can be."""
    found = [(i, p) for i, p in enumerate(probe.words(at, _MAX_SWAPFILES - 8)) if p]
    numbers = (probe.member("struct swap_info_struct", "type", p) for _, p in found)
    # SWP_USED and SWP_WRITEOK alone are not enough: the number must be the place in the array.
    return [i for i, _ in found] == list(range(len(found))) == list(numbers)


def nr_swapfiles(probe: Probe, at: int) -> bool:
    """mm/swapfile.c: how many of them there are."""
    count = probe.word(at, 4)
    words = probe.words(probe.address("swap_info"), _MAX_SWAPFILES - 8)
    return at % 4 == 0 and count <= len(words) and all(words[:count]) and not any(words[count:])


def nr_spaces(probe: Probe, at: int) -> bool:
    """mm/swap_state.c: for each swap area, one address space for 64 MiB."""
    sizes = [probe.member("struct swap_info_struct", "max", area) for area in swap_areas(probe)]
    return all(probe.word(at + 4 * i, 4) == -(-size // _SPACE_PAGES) for i, size in enumerate(sizes))


def spaces(probe: Probe, at: int) -> bool:
    """mm/swap_state.c: for each swap area, an array of address spaces with the same operations."""
    areas = swap_areas(probe)
    arrays = probe.words(at, len(areas) + 1)
    kinds = {probe.member("struct address_space", "a_ops", array) for array in arrays[: len(areas)]}
    return len(kinds) <= 1 and all(probe.image.holds(kind) for kind in kinds)


def crash_notes(probe: Probe, at: int) -> bool:
    """kernel/crash_core.c: a per-CPU pointer to what is aligned by its size, 336 bytes or more, rounded up."""
    place = probe.word(at)
    if at % 8 or place % 512:
        return False
    numbers = (bit for bit in range(64) if probe.word(probe.address("__cpu_possible_mask")) >> bit & 1)
    table = probe.address("__per_cpu_offset")
    heads = [probe.words(place + probe.word(table + 8 * cpu), 2) for cpu in numbers]
    # Empty, or n_namesz of "CORE" and n_type NT_PRSTATUS.
    return place > 0 and all(not head[0] or (head[0] & 0xFFFFFFFF == 5 and head[1] & 0xFFFFFFFF == 1) for head in heads)


def nodes(probe: Probe, at: int) -> bool:
    """mm/numa.c or arch: pointers to the nodes' memory, which know their numbers."""
    return bool(probe.member("struct pglist_data", "node_id", probe.word(at)) == 0 and probe.word(at) >= KERNEL)


def command_line(probe: Probe, at: int) -> bool:
    """init/main.c: a pointer to what the kernel was started with."""
    return bool(probe.text(probe.word(at), 2048))


def memory_map(probe: Probe, at: int) -> bool:
    """kernel/resource.c: the root of the tree of resources in memory."""
    return probe.text(probe.member("struct resource", "name", at)) == b"PCI mem"


def shmem_operations(probe: Probe, at: int) -> bool:
    """mm/shmem.c: its operations on pages begin and end a write."""
    tag, end = "struct address_space_operations", probe.address("shmem_write_end")
    return bool(at % 8 == 0 and probe.member(tag, "write_end", at) == end)


def sections(probe: Probe, at: int) -> bool:
    """mm/sparse.c: a pointer to pointers to sections. All say where the array of struct pages is; the kernel is in it.

    Their number is what VMCOREINFO tells, or the least that an architecture has; memory lies in one at least.
    """
    if at % 8:
        return False
    count = min(max(probe.kernel.info.length("mem_section") or 1, 1), _ROOTS)
    roots = [root for root in probe.words(probe.word(at), count) if root]
    if not roots or not all(root >= KERNEL and root % 8 == 0 for root in roots):
        return False
    size, page = probe.size("struct mem_section"), probe.kernel.memory.walkable().paging.page_size
    maps = probe.words(roots[0] + probe.offset("struct mem_section", "section_mem_map"), page // 8 - size // 8)
    bases = {word & -_SECTION_FLAGS for word in maps[:: size // 8] if word & _SECTION_PRESENT}
    if len(bases) != 1:
        return False
    frame = probe.kernel.memory.translate(probe.address("_stext")).physical // page
    first = bases.pop() + frame * probe.size("struct page")
    # The kernel's own pages have one user, and no other owner (free_area_init, memmap_init_reserved_pages).
    return bool(probe.member("struct page", "_refcount.counter", first) == 1)


def log(probe: Probe, at: int) -> bool:
    """kernel/printk/printk.c: a pointer to a ring, whose newest and oldest record say that they are these."""
    if at % 8:
        return False
    ring, tag = probe.word(at), "struct printk_ringbuffer"
    bits = probe.member(tag, "desc_ring.count_bits", ring)
    if not 0 < bits < _RING_BITS or not 0 < probe.member(tag, "text_data_ring.size_bits", ring) < _RING_BITS:
        return False
    descs, size = probe.member(tag, "desc_ring.descs", ring), probe.size("struct prb_desc")
    ids = [probe.member(tag, f"desc_ring.{end}_id.counter", ring) for end in ("head", "tail")]
    places = [descs + (number & (1 << bits) - 1) * size for number in ids]
    states = [probe.member("struct prb_desc", "state_var.counter", place) for place in places]
    return all((state ^ number) & _RECORD_NUMBER == 0 for state, number in zip(states, ids, strict=True))


def direct_map(probe: Probe, at: int) -> bool:
    """arch/x86/mm/kaslr.c: where physical memory is mapped whole."""
    base, tables = probe.word(at), probe.kernel.memory
    top = tables.translate(probe.address("swapper_pg_dir")).physical
    return base % (1 << 30) == 0 and tables.translate(base + top).physical == top


def page_array(probe: Probe, at: int) -> bool:
    """arch/x86/mm/kaslr.c: where the array of all struct pages begins, above the direct mapping."""
    base, tables = probe.word(at), probe.kernel.memory
    size = probe.kernel.info.size("page") or 64
    top = tables.translate(probe.address("swapper_pg_dir")).physical
    above = base > probe.word(probe.address("page_offset_base"))
    return above and base % (1 << 30) == 0 and bool(tables.translate(base + size * (top >> 12)))


def orc_starts(probe: Probe, at: int) -> bool:
    """arch/x86/kernel/unwind_orc.c: the places of code, as distances from here, the first where code begins."""
    places = _places(probe, at)
    return abs(places[0] - probe.address("_stext")) < 1 << 16 and all(a <= b for a, b in pairwise(places))


def orc_end(probe: Probe) -> int:
    """Where the same table ends: with the last place in order; the rows that follow are small numbers."""
    at, last = probe.address("__start_orc_unwind_ip"), 0
    for _ in range(_MOST_ROWS // _ROWS):
        for place in _places(probe, at):
            if place < last:
                return at
            at, last = at + 4, place
    raise probe.wrong(at)


def orc_stops(probe: Probe, at: int) -> bool:
    """The last places are code that is freed after boot, or stands in for other code."""
    last = _places(probe, at - 4 * _ROWS)[-1]
    return probe.address("_sinittext") <= last < probe.address("_einittext") + (1 << 22)


def orc_rows(probe: Probe, at: int) -> bool:
    """Of 6 bytes each, the fifth of which are two numbers of registers (arch/x86/include/asm/orc_types.h)."""
    rows = probe.kernel.memory.kernel(at, 6 * _ROWS)
    return at % 2 == 0 and all(byte & 15 <= _ORC_REGISTERS and byte >> 4 <= _ORC_REGISTERS for byte in rows[4::6])


def _places(probe: Probe, at: int) -> list[int]:
    words = probe.words(at, _ROWS // 2)
    distances = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    return [at + 4 * i + ((distance ^ 1 << 31) - (1 << 31)) for i, distance in enumerate(distances)]
