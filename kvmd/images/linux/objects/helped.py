"""Objects that nobody but drgn's helpers looks at: a line each, as in ``table.py``, and what they must be.

Sources are named by kernel file; the layouts are the kernel's own types.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmd.images.linux.objects.checks import Check, swap_areas
from kvmd.images.linux.objects.kinds import Derived, Object, code, pointer
from kvmd.images.linux.objects.probe import Probe
from kvmd.images.linux.symbols import KERNEL

_IPC_NUMBER = 0xEFFFFFFF  # PROC_IPC_INIT_INO (include/linux/proc_ns.h)
_NODE, _INTERNAL = 2, 3  # of an entry of an xarray (include/linux/xarray.h)
_IDR = 4  # ROOT_IS_IDR (include/linux/radix-tree.h), the lowest bit that an idr's flags have
_ITEMS = 8  # of statistics, that are compared
_SMALLEST_PAGE = 4096


def named(tag: str, member: str, name: bytes) -> Check:
    """A struct that has a name, behind a pointer or, in brackets, in itself."""
    inside = member.startswith("[")
    plain = member.strip("[]")

    def check(probe: Probe, at: int) -> bool:
        place = at + probe.offset(tag, plain) if inside else probe.member(tag, plain, at)
        return at % 8 == 0 and probe.text(place) == name

    return check


def kset(name: bytes) -> Check:
    """drivers/base: a pointer to a directory of sysfs."""
    whole = named("struct kset", "kobj.name", name)
    return lambda probe, at: at % 8 == 0 and whole(probe, probe.word(at))


def cgroups(probe: Probe, at: int) -> bool:
    """kernel/cgroup/cgroup.c: the root of the first hierarchy, which its own cgroup points back to."""
    tag = "struct cgroup_root"
    return bool(probe.member(tag, "cgrp.root", at) == at and probe.member(tag, "hierarchy_id", at) == 0)


def _first_ipc(probe: Probe) -> int:
    proxy = probe.member("struct task_struct", "nsproxy", probe.address("init_task"))
    found: int = probe.member("struct nsproxy", "ipc_ns", proxy)
    return found


def ipc(probe: Probe, at: int) -> bool:
    """ipc/msgutil.c: the namespace of the idle task, by the number that is the first one's."""
    return probe.image.holds(at) and bool(probe.member("struct ipc_namespace", "ns.inum", at) == _IPC_NUMBER)


def tree(probe: Probe, at: int) -> bool:
    """An xarray that holds something: its uppermost node points back to it, and up to no other."""
    head = probe.member("struct xarray", "xa_head", at)
    if at % 8 or head & _INTERNAL != _NODE or head < KERNEL:
        return False
    node = head - _NODE
    own = probe.member("struct xa_node", "array", node) == at
    return bool(own and not probe.member("struct xa_node", "parent", node))


def numbers(probe: Probe, at: int) -> bool:
    """An idr, which is an xarray with a mark; it may be empty."""
    flags = probe.member("struct idr", "idr_rt.xa_flags", at)
    empty = not probe.member("struct idr", "idr_rt.xa_head", at)
    return at % 8 == 0 and flags & 7 == _IDR and flags >> 16 > 0 and (empty or tree(probe, at))


def swaps(probe: Probe, at: int) -> bool:
    """mm/swapfile.c: a list of the areas that are in use, by priority."""
    tag, link = "struct swap_info_struct", "list.node_list.next"
    found = set(probe.ring(at + probe.offset("struct plist_head", "node_list.next"), probe.offset(tag, link)))
    return bool(found) and found <= set(swap_areas(probe))


def swap_pages(probe: Probe, at: int) -> bool:
    """mm/swapfile.c: how many pages they have."""
    pages = [probe.member("struct swap_info_struct", "pages", area) for area in swap_areas(probe)]
    return at % 8 == 0 and sum(pages) > 0 and probe.word(at) == sum(pages)


def buses(probe: Probe, at: int) -> bool:
    """drivers/pci/probe.c: buses that have none above them, and devices that are on them."""
    tag, link = "struct pci_bus", probe.offset("struct pci_dev", "bus_list.next")
    found = list(probe.ring(at, probe.offset(tag, "node.next")))
    for bus in found:
        devices = list(probe.ring(bus + probe.offset(tag, "devices.next"), link))
        if probe.member(tag, "parent", bus) or not devices:
            return False
        if any(probe.member("struct pci_dev", "bus", device) != bus for device in devices):
            return False
    return bool(found)


def counter(probe: Probe, at: int) -> bool:
    """lib/percpu_counter.c: one that is on the list of all."""
    link = at + probe.offset("struct percpu_counter", "list.next")
    following = probe.word(link)
    known = following >= KERNEL and following != link and probe.word(following + 8) == link
    return at % 8 == 0 and known and probe.word(probe.word(link + 8)) == link


def root_node(probe: Probe, at: int) -> bool:
    """fs/sysfs/mount.c: a pointer to a node without one above, which is its tree's uppermost."""
    node, tag = probe.word(at), "struct kernfs_node"
    root = probe.member(tag, "dir.root", node)
    alone = not probe.member(tag, "__parent|parent", node)
    return at % 8 == 0 and alone and bool(probe.member("struct kernfs_root", "kn", root) == node)


def areas(probe: Probe, at: int) -> bool:
    """mm/vmalloc.c: the root of a tree of areas, the uppermost of which has none above it."""
    node, tag = probe.word(at), "struct vmap_area"
    if at % 8 or node < KERNEL or node % 8:
        return False
    area = node - probe.offset(tag, "rb_node")
    start, end = (probe.member(tag, f"va_{which}", area) for which in ("start", "end"))
    return not probe.word(node) & -4 and KERNEL <= start < end and start % _SMALLEST_PAGE == 0


def states(probe: Probe, at: int) -> bool:
    """fs/proc/array.c: pointers to what ps shows of tasks."""
    return at % 8 == 0 and probe.text(probe.word(at)) == b"R (running)"


def _node_states(probe: Probe) -> int:
    online = probe.kernel.info.symbol("node_online_map")
    return (online or 0) - probe.size("nodemask_t")  # N_ONLINE is the second


def node_states(probe: Probe, at: int) -> bool:
    """mm/page_alloc.c: masks of nodes: those that can be, and those of them that are; the first is."""
    size = probe.size("nodemask_t")
    possible, online = (probe.word(at + n * size, size) for n in range(2))
    return probe.image.holds(at) and bool(online & 1) and not online & ~possible


def _nodes(probe: Probe) -> Iterator[int]:
    """The memory of each node."""
    told = probe.kernel.info.symbol("contig_page_data")
    if told is not None:
        yield told
        return
    for node in probe.words(probe.address("node_data"), 64):
        if node < KERNEL:
            return
        yield node


def _sums(tag: str, count: str) -> Check:
    """Statistics, each of which is the sum of what parts of memory have (mm/vmstat.c)."""

    def check(probe: Probe, at: int) -> bool:
        if at % 8:
            return False
        size, zones = probe.size("struct zone"), probe.constant("__MAX_NR_ZONES")
        low = probe.offset("struct pglist_data", "node_zones.0")
        parts = list(_nodes(probe))
        if tag == "struct zone":
            parts = [node + low + size * zone for node in parts for zone in range(zones)]
        items = min(probe.constant(count), _ITEMS)
        each = [probe.words(part + probe.offset(tag, "vm_stat.0"), items) for part in parts]
        sums = tuple(sum(one) & (1 << 64) - 1 for one in zip(*each, strict=True))
        return any(sums) and probe.words(at, items) == sums

    return check


_VMSTAT = ("si_mem_available", "fold_diff|vmstat_refresh")
_BUS, _CLASS = "struct bus_type", "struct class"
HELPED: dict[str, Object] = {
    "block_class": Object(code("disk_seqf_start|blk_lookup_devt|add_partition"), named(_CLASS, "name", b"block")),
    "pci_bus_type": Object(code("__pci_register_driver|acpi_get_pci_dev|no_pci_devices"), named(_BUS, "name", b"pci")),
    "memory_subsys": Object(code("for_each_memory_block|remove_memory_block"), named(_BUS, "name", b"memory")),
    "class_kset": Object(code("__class_register|class_register|class_compat_register"), kset(b"class")),
    "bus_kset": Object(code("bus_register"), kset(b"bus")),
    "arp_tbl": Object(
        code("arp_ifdown|arp_netdev_event|arp_seq_start"), named("struct neigh_table", "id", b"arp_cache")
    ),
    "blockdev_superblock": Object(
        code("nr_blockdev_pages|inode_to_bdi", "sync_bdevs|bdev_alloc"),
        lambda probe, at: at % 8 == 0 and named("struct super_block", "[s_id]", b"bdev")(probe, probe.word(at)),
    ),
    "cgrp_dfl_root": Object(code("cgroup_on_dfl", "cgroup_get_from_id|cgroup_path_from_kernfs_id"), cgroups),
    "init_ipc_ns": Object(Derived(_first_ipc), ipc),
    # Since 6.5 in a maple tree, sparse_irqs.
    "irq_desc_tree": Object(code("irq_to_desc", "__irq_alloc_descs|free_desc"), tree),
    "map_idr": Object(code("bpf_map_get_curr_or_next", "bpf_map_free_id"), numbers),
    "prog_idr": Object(code("bpf_prog_get_curr_or_next", "bpf_prog_free_id|bpf_prog_by_id"), numbers),
    "btf_idr": Object(code("btf_get_fd_by_id", "btf_alloc_id|btf_free_id|btf_put"), numbers),
    "link_idr": Object(code("bpf_link_get_curr_or_next", "bpf_link_by_id"), numbers),
    "swap_active_head": Object(code("_enable_swap_info"), swaps, 16),
    "total_swap_pages": Object(code("si_swapinfo", "vm_commit_limit"), swap_pages),
    "pci_root_buses": Object(code("pci_find_next_bus", "pci_register_host_bridge|pci_find_bus"), buses, 16),
    "vm_committed_as": Object(code("vm_memory_committed|sync_overcommit_as", "__vm_enough_memory"), counter),
    "sysfs_root_kn": Object(code("sysfs_create_dir_ns", "sysfs_create_link_nowarn|sysfs_move_dir_ns"), root_node),
    "vmap_area_root": Object(code("find_vmap_area|__find_vmap_area", "vread|free_vmap_area_noflush"), areas),
    "task_state_array": Object(code("get_task_state|do_task_stat|proc_pid_status"), states),
    "node_states": Object(Derived(_node_states), node_states),
    "vm_zone_stat": Object(code(*_VMSTAT), _sums("struct zone", "NR_VM_ZONE_STAT_ITEMS")),
    "vm_node_stat": Object(code(*_VMSTAT), _sums("struct pglist_data", "NR_VM_NODE_STAT_ITEMS")),
    "poll_spurious_irq_timer": Object(
        pointer("poll_spurious_irqs", "struct timer_list", "function"),
        lambda probe, at: bool(at % 8 == 0 and not probe.member("struct timer_list", "entry.pprev", at) % 8),
    ),
    "ns_file_operations": Object(
        pointer("ns_ioctl", "struct file_operations", "unlocked_ioctl"),
        lambda probe, at: bool(at % 8 == 0 and not probe.member("struct file_operations", "read", at)),
    ),
}
