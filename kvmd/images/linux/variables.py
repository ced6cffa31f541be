"""Types of the kernel variables that BTF leaves out, and a drgn object finder for them.

The kernel's BTF describes per-CPU variables only (since Linux 6.16 some builds describe all), and that of Debian's 5.10
not even these. The table below names the variables that kvmd and drgn's helpers look at; where a name was declared in
several ways, all are listed, newest first, and the first whose types exist counts. Addresses come from symbol tables.
"""

from __future__ import annotations

from drgn import FindObjectFlags, Object, Program, Type, TypeKind, TypeMember, alignof, sizeof

from kvmd.images.linux.btf import Kind
from kvmd.images.linux.symbols import N_EXT, N_TEXT, Lookup
from kvmd.images.linux.types import Types

# C types by what uses them. [] takes the length from the symbol's size.
VARIABLES: dict[str, tuple[str, ...]] = {
    "init_task": ("struct task_struct",),
    "init_mm": ("struct mm_struct",),
    "init_pid_ns": ("struct pid_namespace",),
    "init_uts_ns": ("struct uts_namespace",),
    "init_net": ("struct net",),
    "arp_tbl": ("struct neigh_table",),
    "init_ipc_ns": ("struct ipc_namespace",),
    "net_namespace_list": ("struct list_head",),
    "root_task_group": ("struct task_group",),
    "nr_threads": ("int",),
    "total_forks": ("unsigned long",),
    "pidhash_shift": ("unsigned int",),
    "uidhash_table": ("struct hlist_head []",),
    "ipc_mni_shift": ("int",),
    "task_state_array": ("const char *[9]",),
    "task_struct_cachep": ("struct kmem_cache *",),
    # Per CPU and topology.
    "__per_cpu_offset": ("unsigned long []",),
    "nr_cpu_ids": ("unsigned int",),
    "__cpu_online_mask": ("struct cpumask",),
    "__cpu_possible_mask": ("struct cpumask",),
    "__cpu_present_mask": ("struct cpumask",),
    "crash_notes": ("note_buf_t *",),
    "lowcore_ptr": ("struct lowcore *[]",),
    # Variables of each CPU, where BTF leaves those out, too (Debian's 5.10: pahole 1.17 and older).
    "runqueues": ("struct rq",),
    "call_single_queue": ("struct llist_head",),
    "timer_bases": ("struct timer_base []",),
    "hrtimer_bases": ("struct hrtimer_cpu_base",),
    "kernel_cpustat": ("struct kernel_cpustat",),
    "tick_cpu_sched": ("struct tick_sched",),
    "current_task": ("struct task_struct *",),
    "cpu_number": ("int",),
    "hardirq_stack_ptr": ("struct irq_stack *",),
    "exception_stacks": ("struct exception_stacks",),
    "node_states": ("nodemask_t []",),
    "nr_node_ids": ("unsigned int",),
    # Memory management.
    "node_data": ("struct pglist_data *[]",),
    "contig_page_data": ("struct pglist_data",),
    "mem_section": ("struct mem_section **",),
    "__highest_present_section_nr": ("unsigned long",),
    "sections_per_block": ("int",),
    "memory_subsys": ("struct bus_type",),
    "memblock": ("struct memblock",),
    "mem_map": ("struct page *",),
    "vmemmap_base": ("unsigned long",),
    "page_offset_base": ("unsigned long",),
    "vmalloc_base": ("unsigned long",),
    "_totalram_pages": ("atomic_long_t",),
    "totalram_pages": ("unsigned long",),
    "total_swap_pages": ("long",),
    "nr_swap_pages": ("atomic_long_t",),
    "max_pfn": ("unsigned long",),
    "max_low_pfn": ("unsigned long",),
    "min_low_pfn": ("unsigned long",),
    "max_mapnr": ("unsigned long",),
    "vm_node_stat": ("atomic_long_t []",),
    "vm_zone_stat": ("atomic_long_t []",),
    "vm_numa_stat": ("atomic_long_t []",),
    "vm_numa_event": ("atomic_long_t []",),
    "vm_event_states": ("struct vm_event_state",),
    "vm_committed_as": ("struct percpu_counter",),
    "vmap_area_list": ("struct list_head",),
    "vmap_area_root": ("struct rb_root",),
    "vmap_nodes": ("struct vmap_node *",),
    "nr_vmap_nodes": ("int",),
    "vmap_zone_size": ("unsigned long",),
    "thread_stack_cache": ("struct kmem_cache *",),
    "slab_caches": ("struct list_head",),
    "slab_kset": ("struct kset *",),
    "swap_active_head": ("struct plist_head",),
    "swap_info": ("struct swap_info_struct *[]",),
    "nr_swapfiles": ("unsigned int",),
    "swapper_spaces": ("struct address_space *[]",),
    "nr_swapper_spaces": ("unsigned int []",),
    "hstates": ("struct hstate []",),
    "hugetlb_max_hstate": ("int",),
    "sysctl_overcommit_kbytes": ("unsigned long",),
    "sysctl_overcommit_ratio": ("int",),
    # Files and devices.
    "super_blocks": ("struct list_head",),
    "userspace_init_fs": ("struct fs_struct",),
    "blockdev_superblock": ("struct super_block *",),
    "chrdevs": ("struct char_device_struct *[]",),
    "cdev_map": ("struct kobj_map *",),
    "major_names": ("struct blk_major_name *[]",),
    "ns_file_operations": ("struct file_operations",),
    "sysfs_root_kn": ("struct kernfs_node *",),
    "class_kset": ("struct kset *",),
    "bus_kset": ("struct kset *",),
    **dict.fromkeys(
        ("bus_ktype", "class_ktype", "device_ktype", "driver_ktype", "module_ktype"), ("struct kobj_type",)
    ),
    "block_class": ("struct class",),
    "pci_bus_type": ("struct bus_type",),
    "pci_root_buses": ("struct list_head",),
    "iomem_resource": ("struct resource",),
    "ioport_resource": ("struct resource",),
    # Modules, cgroups, BPF.
    "modules": ("struct list_head",),
    "mod_tree": ("struct mod_tree_root",),
    "cgrp_dfl_root": ("struct cgroup_root",),
    "cgroup_mutex": ("struct mutex",),
    "prog_idr": ("struct idr",),
    "map_idr": ("struct idr",),
    "btf_idr": ("struct idr",),
    "link_idr": ("struct idr",),
    # Interrupts.
    "idt_table": ("gate_desc []",),
    "irq_desc_tree": ("struct radix_tree_root", "struct xarray"),  # the first is a macro for the other since 4.20
    "poll_spurious_irq_timer": ("struct timer_list",),
    "sparse_irqs": ("struct maple_tree",),
    "nr_irqs": ("unsigned int", "int"),
    "total_nr_irqs": ("unsigned int",),
    # Log, time, load, panic.
    "prb": ("struct printk_ringbuffer *",),
    "log_buf": ("char *",),
    "log_buf_len": ("u32",),
    "log_first_idx": ("u32",),
    "log_next_idx": ("u32",),
    "log_first_seq": ("u64",),
    "jiffies": ("unsigned long",),
    "jiffies_64": ("u64",),
    "avenrun": ("unsigned long [3]",),
    "timekeeper_data": ("struct tk_data []",),
    "tainted_mask": ("unsigned long",),
    "taint_flags": ("struct taint_flag []",),
    "panic_cpu": ("atomic_t",),
    "saved_command_line": ("char *",),
    "linux_banner": ("char []",),
    "linux_proc_banner": ("char []",),
}


class Variables:
    """A drgn object finder.

    :param symbol: looks up a symbol of the kernel proper.
    """

    def __init__(self, prog: Program, types: Types, symbol: Lookup) -> None:
        self._prog = prog
        self._types = types
        self._symbol = symbol

    def find(self, prog: Program, name: str, flags: FindObjectFlags, _filename: str | None) -> Object | None:
        """Find a constant, function or variable; the signature is that of drgn's object finders."""
        if flags & FindObjectFlags.CONSTANT and (constant := self._types.constant(name)) is not None:
            return constant
        place = self._symbol(name)
        if place is None:
            return None
        if flags & FindObjectFlags.FUNCTION and place.n_type & ~N_EXT == N_TEXT:
            return Object(self._prog, self._function(name), address=place.value)
        if flags & FindObjectFlags.VARIABLE and (found := self._type(name, place.size)) is not None:
            return Object(self._prog, found, address=place.value)
        return None

    def _function(self, name: str) -> Type:
        """A function's type; BTF leaves out those that are freed after boot."""
        function = self._types.btf.find(name, Kind.FUNC)
        if function is not None:
            return self._types.type(function)
        return self._prog.function_type(self._prog.void_type(), ())

    def _type(self, name: str, size: int) -> Type | None:
        variable = self._types.btf.find(name, Kind.VAR)
        if variable is not None:
            return self._types.type(variable)
        if name == "tk_core":
            return self._anonymous(("seq", "seqcount_raw_spinlock_t"), ("timekeeper", "struct timekeeper"))
        if name == "cpu_bit_bitmap":  # a mask for each CPU of a word, and one of none (include/linux/cpumask.h)
            word = self._prog.type("unsigned long")
            words = sizeof(self._prog.type("struct cpumask")) // sizeof(word)
            return self._prog.array_type(self._prog.array_type(word, words), 8 * sizeof(word) + 1)
        for declared in VARIABLES.get(name, ()):
            try:
                found = self._prog.type(declared)
            except LookupError:
                continue
            if found.kind is TypeKind.ARRAY and found.length is None and size:
                found = self._prog.array_type(found.type, size // max(sizeof(found.type), 1))
            return found
        return None

    def _anonymous(self, *members: tuple[str, str]) -> Type | None:
        """A struct without a tag, as the variable's definition writes it."""
        listed, at = [], 0
        for name, declared in members:
            try:
                kind = self._prog.type(declared)
            except LookupError:
                return None
            at = -(-at // alignof(kind)) * alignof(kind)
            listed.append(TypeMember(kind, name, at * 8))
            at += sizeof(kind)
        return self._prog.struct_type(None, at, listed)
