"""The objects: a line each says where to look for it, and what it must be. Beside these there are per-CPU variables.

The functions are some that refer to the object in every kernel since 5.10 or so, or did as long as they were there;
those that are freed after boot (__init) tell nothing. ``without`` are functions that don't: compilers reach neighbours
of an object through its address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmd.images.linux.objects import checks
from kvmd.images.linux.objects.checks import Check, named_list
from kvmd.images.linux.objects.probe import Probe


class Code(NamedTuple):
    """Look at what all of these functions refer to, as far as the kernel has them; and none of the others.

    Of functions joined by ``|`` one is enough: for objects that nothing else looks like.

    :ivar also: offsets from the object that they refer to, too.
    """

    functions: tuple[str, ...]
    without: tuple[str, ...] = ()
    also: tuple[int, ...] = ()


class Content(NamedTuple):
    """Look for bytes in the kernel's image: gives those, and how far after the object's beginning they stand."""

    bytes_of: Callable[[Probe], Iterator[tuple[bytes, int]]]


class Derived(NamedTuple):
    """Look where another object says."""

    address: Callable[[Probe], int]


class Object(NamedTuple):
    """An object of the kernel.

    :ivar size: in bytes, at least: what lies inside one that passed is a part of it.
    """

    origin: Code | Content | Derived
    check: Check
    size: int = 8


def _code(*functions: str, without: tuple[str, ...] = ()) -> Code:
    return Code(functions, without)


def _comm(probe: Probe) -> Iterator[tuple[bytes, int]]:
    offset = probe.offset("struct task_struct", "comm")
    yield from ((name.ljust(16, b"\0"), offset) for name in (b"swapper/0", b"swapper"))


def _banner(probe: Probe) -> Iterator[tuple[bytes, int]]:
    yield b"Linux version " + probe.kernel.info.release.encode() + b" (", 0


def _pointer(symbol: str, tag: str = "", member: str = "") -> Content:
    """Look for a pointer to what a symbol means, in a member of a struct."""

    def bytes_of(probe: Probe) -> Iterator[tuple[bytes, int]]:
        offset = probe.offset(tag, member) if tag else 0
        yield probe.address(symbol).to_bytes(8, "little"), offset

    return Content(bytes_of)


def _sections(probe: Probe) -> Iterator[tuple[bytes, int]]:
    value = probe.kernel.info.symbol("mem_section")  # of an array, and so what the pointer holds
    if value is not None and not probe.image.holds(value):
        yield value.to_bytes(8, "little"), 0


def _first_net(probe: Probe) -> int:
    return next(probe.ring(probe.address("net_namespace_list"), probe.offset("struct net", "list.next")))


_MASK = ("init_cpu_online",)
OBJECTS: dict[str, Object] = {
    "init_task": Object(Content(_comm), checks.init_task),
    "linux_banner": Object(Content(_banner), checks.banner),
    "init_mm": Object(_pointer("swapper_pg_dir", "struct mm_struct", "pgd"), checks.init_mm),
    "shmem_aops": Object(
        _pointer("shmem_write_begin", "struct address_space_operations", "write_begin"), checks.shmem_operations
    ),
    "mem_section": Object(Content(_sections), checks.sections),
    "__cpu_possible_mask": Object(_code("init_cpu_possible", without=_MASK), checks.possible_mask),
    "__cpu_present_mask": Object(_code("init_cpu_present", without=_MASK), checks.mask),
    "__cpu_online_mask": Object(_code("init_cpu_online", "smp_call_function"), checks.mask),
    "nr_cpu_ids": Object(_code("get_cpu_device", "tick_handover_do_timer"), checks.nr_cpu_ids, 4),
    "modules": Object(
        _code("module_kallsyms_lookup_name", "__is_module_percpu_address"),
        named_list("struct module", "list.next", "module.name", empty=True),
        16,
    ),
    "btf_modules": Object(
        _code("btf_module_notify"), named_list("struct btf_module", "list.next", "btf_module.module > module.name"), 16
    ),
    "super_blocks": Object(
        _code("user_get_super|sget|sget_fc"),
        named_list("struct super_block", "s_list.next", "super_block.s_type > file_system_type.*name"),
        16,
    ),
    "slab_caches": Object(
        _code("slab_start|slab_next|kmem_cache_create_usercopy|slab_show"),
        named_list("struct kmem_cache", "list.next", "kmem_cache.*name"),
        16,
    ),
    "net_namespace_list": Object(
        _code("__rtnl_link_unregister|rtnl_link_unregister|register_netdevice_notifier|unregister_netdevice_notifier"),
        checks.net_list,
        16,
    ),
    "init_net": Object(Derived(_first_net), checks.net),
    "init_pid_ns": Object(
        _code("put_pid_ns|reboot_pid_ns|alloc_pid|pidns_get|pidns_get_parent|locks_translate_pid"), checks.init_pid_ns
    ),
    "tainted_mask": Object(_code("get_taint", "test_taint"), checks.taints),
    "avenrun": Object(Code(("get_avenrun", "calc_global_load"), also=(8, 16)), checks.loads, 24),
    "jiffies": Object(_code("do_timer", "acpi_os_get_timer", "blk_abort_request"), checks.jiffies),
    "jiffies_64": Object(Derived(lambda probe: probe.address("jiffies")), checks.jiffies),
    "tk_core": Object(_code("ktime_get", "ktime_get_raw"), checks.clocks, 256),
    "timekeeper_data": Object(_code("ktime_get", "ktime_get_raw"), checks.clocks_since_6_13, 256),
    "_totalram_pages": Object(_code("si_meminfo", "adjust_managed_page_count", "vm_commit_limit"), checks.pages),
    "swap_info": Object(_code("swp_swap_info", "si_swapinfo"), checks.swap_info, 8),
    "nr_swapfiles": Object(_code("si_swapinfo", "swapcache_free_entries"), checks.nr_swapfiles, 4),
    "nr_swapper_spaces": Object(_code("exit_swap_address_space", "init_swap_address_space"), checks.nr_spaces, 4),
    "swapper_spaces": Object(_code("exit_swap_address_space", "swap_cache_get_folio"), checks.spaces, 8),
    "crash_notes": Object(_code("crash_notes_show", "crash_save_cpu"), checks.crash_notes),
    "node_data": Object(_code("first_online_pgdat", "inc_node_page_state"), checks.nodes),
    "saved_command_line": Object(_code("cmdline_proc_show"), checks.command_line),
    "iomem_resource": Object(_code("iomem_is_exclusive"), checks.memory_map),
    # 7.2 has a function for it, and asks it in no other that is left.
    "tick_nohz_active": Object(
        _code(*(f"get_cpu_{name}_time_us|tick_nohz_is_active" for name in ("idle", "iowait"))), checks.flag, 4
    ),
    "page_offset_base": Object(_code("valid_phys_addr_range"), checks.direct_map),
    "vmemmap_base": Object(_code("vmalloc_to_pfn"), checks.page_array),
    # The linker script puts it where the table of BUG()s ends.
    "__start_orc_unwind_ip": Object(_code("orc_find|unwind_next_frame|find_bug"), checks.orc_starts, 4),
    "__stop_orc_unwind_ip": Object(Derived(checks.orc_end), checks.orc_stops, 4),
    "__start_orc_unwind": Object(
        Derived(lambda probe: probe.address("__stop_orc_unwind_ip") + 1 & -2), checks.orc_rows
    ),
}
