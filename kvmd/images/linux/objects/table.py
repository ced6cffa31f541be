"""The objects: a line each says where to look for it, and what it must be. Beside these there are per-CPU variables.

The functions are some that refer to the object in every kernel since 5.10 or so, or did as long as they were there;
those that are freed after boot (__init) tell nothing. ``without`` are functions that don't: compilers reach neighbours
of an object through its address.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmd.images.linux.objects import checks
from kvmd.images.linux.objects.checks import named_list
from kvmd.images.linux.objects.helped import HELPED
from kvmd.images.linux.objects.kinds import Code, Content, Derived, Object, code, pointer
from kvmd.images.linux.objects.probe import Probe


def _comm(probe: Probe) -> Iterator[tuple[bytes, int]]:
    yield b"swapper", probe.offset("struct task_struct", "comm")  # and /0 where there can be several CPUs


def _banner(probe: Probe) -> Iterator[tuple[bytes, int]]:
    yield b"Linux version " + probe.kernel.info.release.encode() + b" (", 0


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
    "init_mm": Object(pointer("swapper_pg_dir", "struct mm_struct", "pgd"), checks.init_mm),
    "shmem_aops": Object(
        pointer("shmem_write_begin", "struct address_space_operations", "write_begin"), checks.shmem_operations
    ),
    # Where VMCOREINFO tells what the pointer holds, it is that; else functions have to.
    "mem_section": Object(
        Content(_sections),
        checks.sections,
        untold=code(
            "__nr_to_section|pfn_to_online_page|online_mem_sections",
            "pfn_valid|__pfn_to_section|pfn_modify_allowed",
        ),
    ),
    # VMCOREINFO tells of it, but not one that was made anew.
    "prb": Object(code("kmsg_dump_get_buffer", "kmsg_dump_rewind", "devkmsg_llseek|devkmsg_read"), checks.log),
    "__cpu_possible_mask": Object(code("init_cpu_possible", without=_MASK), checks.possible_mask),
    "__cpu_present_mask": Object(code("init_cpu_present", without=_MASK), checks.mask),
    "__cpu_online_mask": Object(code("init_cpu_online", "smp_call_function"), checks.mask),
    "nr_cpu_ids": Object(code("get_cpu_device", "tick_handover_do_timer"), checks.nr_cpu_ids, 4),
    "modules": Object(
        code("module_kallsyms_lookup_name", "__is_module_percpu_address"),
        named_list("struct module", "list.next", "module.name", empty=True),
        16,
    ),
    "btf_modules": Object(
        code("btf_module_notify"), named_list("struct btf_module", "list.next", "btf_module.module > module.name"), 16
    ),
    "super_blocks": Object(
        code("user_get_super|sget|sget_fc"),
        named_list("struct super_block", "s_list.next", "super_block.s_type > file_system_type.*name"),
        16,
    ),
    "slab_caches": Object(
        code("slab_start|slab_next|kmem_cache_create_usercopy|slab_show"),
        named_list("struct kmem_cache", "list.next", "kmem_cache.*name"),
        16,
    ),
    "net_namespace_list": Object(
        code("__rtnl_link_unregister|rtnl_link_unregister|register_netdevice_notifier|unregister_netdevice_notifier"),
        checks.net_list,
        16,
    ),
    "init_net": Object(Derived(_first_net), checks.net),
    "init_pid_ns": Object(
        code("put_pid_ns|reboot_pid_ns|alloc_pid|pidns_get|pidns_get_parent|locks_translate_pid"), checks.init_pid_ns
    ),
    "tainted_mask": Object(code("get_taint", "test_taint"), checks.taints),
    "avenrun": Object(Code(("get_avenrun", "calc_global_load"), also=(8, 16)), checks.loads, 24),
    "jiffies": Object(code("do_timer", "acpi_os_get_timer", "blk_abort_request"), checks.jiffies),
    "jiffies_64": Object(Derived(lambda probe: probe.address("jiffies")), checks.jiffies),
    "tk_core": Object(code("ktime_get", "ktime_get_raw"), checks.clocks, 256),
    "timekeeper_data": Object(code("ktime_get", "ktime_get_raw"), checks.clocks_since_6_13, 256),
    "_totalram_pages": Object(code("si_meminfo", "adjust_managed_page_count", "vm_commit_limit"), checks.pages),
    "swap_info": Object(code("swp_swap_info", "si_swapinfo"), checks.swap_info, 8),
    "nr_swapfiles": Object(code("si_swapinfo", "swapcache_free_entries"), checks.nr_swapfiles, 4),
    "nr_swapper_spaces": Object(code("exit_swap_address_space", "init_swap_address_space"), checks.nr_spaces, 4),
    "swapper_spaces": Object(code("exit_swap_address_space", "swap_cache_get_folio"), checks.spaces, 8),
    "crash_notes": Object(code("crash_notes_show", "crash_save_cpu"), checks.crash_notes),
    "node_data": Object(code("first_online_pgdat", "inc_node_page_state"), checks.nodes),
    "saved_command_line": Object(code("cmdline_proc_show"), checks.command_line),
    "iomem_resource": Object(code("iomem_is_exclusive"), checks.memory_map),
    # 7.2 has a function for it, and asks it in no other that is left.
    "tick_nohz_active": Object(
        code(*(f"get_cpu_{name}_time_us|tick_nohz_is_active" for name in ("idle", "iowait"))), checks.flag, 4
    ),
    "page_offset_base": Object(code("valid_phys_addr_range"), checks.direct_map),
    "vmemmap_base": Object(code("vmalloc_to_pfn"), checks.page_array),
    # The linker script puts it where the table of BUG()s ends.
    "__start_orc_unwind_ip": Object(code("orc_find|unwind_next_frame|find_bug"), checks.orc_starts, 4),
    "__stop_orc_unwind_ip": Object(Derived(checks.orc_end), checks.orc_stops, 4),
    "__start_orc_unwind": Object(
        Derived(lambda probe: probe.address("__stop_orc_unwind_ip") + 1 & -2), checks.orc_rows
    ),
    **HELPED,
}
