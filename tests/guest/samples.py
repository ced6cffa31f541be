"""Arguments for drgn's helpers, out of an image: by the helper's module and parameter, or by the parameter alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drgn import Object, Program
from drgn.helpers.linux import block, device, fs, irq, mm, mmzone, module, net, pci, pid, sched, slab, swap, sysfs
from drgn.helpers.linux.list import list_first_entry, list_for_each_entry
from drgn.helpers.linux.percpu import per_cpu


class NoSample(Exception):  # noqa: N818 - tells that there is nothing of the kind
    """Nothing in the image is of the kind that a helper takes."""


Sample = Callable[["Samples"], Any]


def first(items: Any) -> Any:
    """The first of what a helper yields."""
    for item in items:
        return item
    raise NoSample


class Samples:
    """The arguments of one image; each is looked for once."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        self._known: dict[Sample, Any] = {}

    def get(self, helper: str, parameter: str) -> Any:
        """The argument for a helper's parameter."""
        sample = TABLE.get(f"{helper}:{parameter}") or TABLE.get(f"{helper.partition('.')[0]}:{parameter}")
        sample = sample or TABLE.get(parameter)
        if sample is None:
            raise NoSample
        return self.of(sample)

    def of(self, sample: Sample) -> Any:
        """Find a sample, or remember it."""
        if sample not in self._known:
            self._known[sample] = sample(self)
        return self._known[sample]

    # The things that others hang on.

    def task(self) -> Object:
        """The first process."""
        return pid.find_task(self.prog, 1)

    def mm(self) -> Object:
        """Its memory."""
        return self.of(Samples.task).mm

    def vma(self) -> Object:
        """The first area of it."""
        return first(mm.for_each_vma(self.of(Samples.mm)))

    def page(self) -> Object:
        """A page of the kernel's image."""
        return mm.virt_to_page(self.prog, self.of(Samples.direct))

    def direct(self) -> int:
        """An address in the direct mapping: a task's."""
        return self.of(Samples.task).value_()

    def cache(self) -> Object:
        """The cache of tasks."""
        return slab.find_slab_cache(self.prog, "task_struct")

    def bus(self) -> Object:
        """The PCI bus."""
        return first(pci.for_each_pci_root_bus(self.prog))

    def disk(self) -> Object:
        """The first disk."""
        return first(block.for_each_disk(self.prog))

    def cgroup(self) -> Object:
        """The root of the default hierarchy."""
        return self.prog["cgrp_dfl_root"].cgrp.address_of_()

    def node(self) -> Object:
        """A node of a kernfs tree."""
        return sysfs.sysfs_lookup_node(self.prog, "kernel")

    def netdev(self) -> Object:
        """The loopback device."""
        return net.netdev_get_by_name(self.prog, "lo")

    def file(self) -> Object:
        """An open file."""
        return first(file for task in pid.for_each_task(self.prog) for _, file in fs.for_each_file(task))

    def desc(self) -> Object:
        """An interrupt's descriptor."""
        return first(desc for _, desc in irq.for_each_irq_desc(self.prog))

    def zone(self) -> Object:
        """The first zone."""
        return mmzone.NODE_DATA(self.prog, 0).node_zones[0].address_of_()

    def module(self) -> Object:
        """The first module."""
        return first(module.for_each_module(self.prog))

    def mount(self) -> Object:
        """The first mount."""
        return first(fs.for_each_mount(self.prog))


S = Samples


def _rq(s: Samples) -> Object:
    return sched.cpu_rq(s.prog, 0)


def _section_nr(s: Samples) -> int:
    return int(mmzone.pfn_to_section_nr(s.prog, mm.page_to_pfn(s.of(S.page))))


def _user(s: Samples) -> int:
    return int(s.of(S.mm).arg_start)


def _rbroot(s: Samples) -> Object:
    try:
        return s.prog["vmap_area_root"].address_of_()
    except LookupError:  # since 6.9 there is one for each node
        nodes = s.prog["vmap_nodes"]
        roots = (nodes[i].busy.root for i in range(s.prog["nr_vmap_nodes"]))
        return first(root.address_of_() for root in roots if root.rb_node)


def _rbnode(s: Samples) -> Object:
    return s.of(_rbroot).rb_node


def _superblock(s: Samples) -> Object:
    return s.of(S.mount).mnt.mnt_sb


def _waitqueue(s: Samples) -> Object:
    return s.of(S.task).signal.wait_chldexit.address_of_()


def _kthread(s: Samples) -> Object:
    """Of kthreadd itself there is a struct kthread since 5.17."""
    first = pid.find_task(s.prog, 2)
    if first.vfork_done:
        return first
    return next(list_for_each_entry("struct task_struct", first.children.address_of_(), "sibling"))


def _swait(s: Samples) -> Object:
    return _kthread(s).vfork_done.wait.address_of_()


def _css(s: Samples) -> Object:
    return s.of(S.cgroup).self.address_of_()


def _class(s: Samples) -> Object:
    return s.prog["block_class"].address_of_()


def _device(s: Samples) -> Object:
    return first(device.class_for_each_device(s.of(_class)))


def _plist(s: Samples) -> Object:
    return s.prog["swap_active_head"].address_of_()


def _llist(s: Samples) -> Object:
    return s.of(_rq).wake_list.address_of_() if s.of(_rq).type_.type.has_member("wake_list") else _csd(s)


def _csd(s: Samples) -> Object:
    return per_cpu(s.prog["call_single_queue"], 0).address_of_()


def _hlist(s: Samples) -> Object:
    return s.prog["init_task"].thread_pid.tasks[0].address_of_()


def _swap(s: Samples) -> Object:
    return first(swap.for_each_swap_info(s.prog))


def _of_field(path: str, base: Sample) -> Sample:
    def sample(s: Samples) -> Object:
        found = s.of(base)
        for part in path.split("."):
            found = found.member_(part)
        return found.address_of_()

    return sample


def _constant(value: Any) -> Sample:
    return lambda s: value


def _comparison(s: Samples) -> Callable[[Object, Object], int]:
    return lambda a, b: (a.va_start.value_() > b.va_start.value_()) - (a.va_start.value_() < b.va_start.value_())


TABLE: dict[str, Sample] = {
    "prog": lambda s: s.prog,
    "task": S.task,
    "task_arg": S.task,
    "mm": S.mm,
    "vma": S.vma,
    "page": S.page,
    "cpu": _constant(0),
    "nid": _constant(0),
    "nr": _section_nr,
    "pfn": lambda s: mm.page_to_pfn(s.of(S.page)),
    "addr": S.direct,
    "mm.PHYS_PFN:addr": _constant(1 << 20),
    "mm.phys_to_page:addr": _constant(1 << 20),
    "mm.phys_to_virt:addr": _constant(1 << 20),
    "mm.find_vmap_area:addr": lambda s: s.of(S.task).stack.value_(),
    "mm.vmalloc_to_page:addr": lambda s: s.of(S.task).stack.value_(),
    "mm.vmalloc_to_pfn:addr": lambda s: s.of(S.task).stack.value_(),
    "module.address_to_module:addr": lambda s: s.of(S.module).value_(),
    "mm.follow_page:addr": _user,
    "mm.follow_pfn:addr": _user,
    "mm.follow_phys:addr": _user,
    "mm.vma_find:addr": _user,
    "address": _user,
    "size": _constant(8),
    "flags": _constant(1),
    "item": _constant(0),
    "state": _constant(1),
    "nodemask.node_state:state": lambda s: s.prog["N_ONLINE"],
    "node_state:node": _constant(0),
    "nodemask.node_state:node": _constant(0),
    "nodemask.mask": lambda s: s.prog["node_states"][1],
    "nodemask:mask": lambda s: s.prog["node_states"][1],
    "mask": lambda s: s.prog["__cpu_online_mask"],
    "bitmap": lambda s: s.prog["__cpu_online_mask"].bits,
    "bitops:nr": _constant(0),
    "section": lambda s: mmzone.nr_to_section(s.prog, s.of(_section_nr)),
    "zone": S.zone,
    "i": _constant(0),
    # Lists and trees.
    "list:head": lambda s: s.prog["init_task"].tasks.address_of_(),
    "list:type": _constant("struct task_struct"),
    "list:member": _constant("tasks"),
    "list:pos": lambda s: list_first_entry(s.prog["init_task"].tasks.address_of_(), "struct task_struct", "tasks"),
    **{f"list.{name}:head": _hlist for name in ("hlist_empty", "hlist_for_each", "hlist_for_each_entry")},
    "list.hlist_for_each_entry:member": _constant("pid_links[0]"),
    "llist:head": _llist,
    "plist:head": _plist,
    "plist:type": _constant("struct swap_info_struct"),
    "plist:member": _constant("list"),
    "plist:node": lambda s: s.of(_swap).list.address_of_(),
    "rbtree:root": _rbroot,
    "rbtree:node": _rbnode,
    "rbtree:type": _constant("struct vmap_area"),
    "rbtree:member": _constant("rb_node"),
    "rbtree:cmp": _comparison,
    "rbtree:allow_equal": _constant(False),
    "radixtree:root": lambda s: s.prog["init_pid_ns"].idr.idr_rt.address_of_(),
    "radixtree:index": _constant(1),
    "xarray:xa": _of_field("f_mapping.i_pages", S.file),
    "xarray:index": _constant(0),
    "xarray:entry": lambda s: s.of(S.task),
    "idr:idr": lambda s: s.prog["init_pid_ns"].idr.address_of_(),
    "idr:id": _constant(1),
    "idr:type": _constant("struct pid"),
    "mt": _of_field("mm_mt", S.mm),
    "mapletree:index": _user,
    # Processes.
    "ns": lambda s: s.prog["init_pid_ns"].address_of_(),
    "fs:ns": lambda s: s.of(S.task).nsproxy.mnt_ns,
    "ipc:ns": lambda s: s.prog["init_ipc_ns"].address_of_(),
    "pid.find_pid:pid": _constant(1),
    "pid.find_task:pid": _constant(1),
    "pid": lambda s: s.of(S.task).thread_pid,
    "pid_type": lambda s: s.prog["PIDTYPE_PID"],
    "ptr": lambda s: s.prog["runqueues"].address_of_(),
    "var": lambda s: s.prog["runqueues"],
    "fbc": lambda s: s.prog["vm_committed_as"].address_of_(),
    "sched:rq": _rq,
    "cfs_rq": _of_field("cfs", _rq),
    "se": _of_field("se", S.task),
    "tg": lambda s: s.of(S.task).sched_task_group,
    "sigaction": lambda s: s.of(S.task).sighand.action[1].sa.address_of_(),
    "pending": _of_field("pending", S.task),
    "sigset": lambda s: s.of(S.task).blocked,
    "wq": _waitqueue,
    "swait:wq": _swait,
    "kthread.kthread_data:task": _kthread,
    "completion": lambda s: _kthread(s).vfork_done,
    "lock": lambda s: s.prog["cgroup_mutex"].address_of_(),
    "sem": _of_field("mmap_lock", S.mm),
    "user.find_user:uid": _constant(0),
    "uid": lambda s: s.of(S.task).cred.uid,
    # Modules, memory, swap.
    "module": S.module,
    "mod": S.module,
    "slab_cache": S.cache,
    "slab:type": _constant("struct task_struct"),
    "slab:name": _constant("task_struct"),
    "module:name": lambda s: s.of(S.module).name.string_().decode(),
    "si": _swap,
    "hstate": lambda s: s.prog["hstates"][0],
    "mem": lambda s: first(mm.for_each_memory_block(s.prog)),
    # Files and devices.
    "fd": lambda s: 0,
    "fs:inode": lambda s: s.of(S.file).f_inode,
    "mapping": lambda s: s.of(S.file).f_mapping,
    "arg1": _of_field("f_path", S.file),
    "mode": lambda s: s.of(S.file).f_inode.i_mode,
    "dentry": lambda s: s.of(S.file).f_path.dentry,
    "fs.path_lookup:root": lambda s: s.of(S.task).fs.root.address_of_(),
    "fs.path_lookup:path": _constant("/"),
    "mnt": S.mount,
    "fs:sb": _superblock,
    "disk": S.disk,
    "part": lambda s: first(block.for_each_partition(s.prog)),
    "bdev": lambda s: s.of(S.disk).part0,
    "q": lambda s: s.of(S.disk).queue,
    "op": lambda s: Object(s.prog, "unsigned int", 1),
    "sbitmap:sb": lambda s: s.of(S.disk).queue.tag_set.tags[0].bitmap_tags.sb.address_of_(),
    "major": _constant(8),
    "minor": _constant(1),
    "device.MAJOR:dev": _constant(8 << 20 | 1),
    "device.MINOR:dev": _constant(8 << 20 | 1),
    "device:dev": _device,
    "class_": _class,
    "device:bus": lambda s: s.prog["pci_bus_type"].address_of_(),
    "pci:bus": S.bus,
    "pci:dev": lambda s: first(pci.for_each_pci_dev(s.prog)),
    "sysfs:path": _constant("kernel"),
    "kobj": lambda s: sysfs.sysfs_lookup_kobject(s.prog, "kernel"),
    "kn": S.node,
    "parent": S.node,
    "kernfs:path": _constant("."),
    "ioport:root": lambda s: s.prog["iomem_resource"].address_of_(),
    "desc": S.desc,
    "irq": _constant(9),
    "gate": lambda s: s.prog["idt_table"][0],
    # Cgroups, BPF, network, time.
    "cgrp": S.cgroup,
    "cgroup:path": _constant("/"),
    "css": _css,
    "cgroup.css_next_child:pos": lambda s: Object(s.prog, "struct cgroup_subsys_state *", 0),
    "cgroup.css_next_child:parent": _css,
    "cgroup.css_next_descendant_pre:pos": lambda s: Object(s.prog, "struct cgroup_subsys_state *", 0),
    "cgroup.css_next_descendant_pre:root": _css,
    "bpf_attach_type": _constant(0),
    "bpf:id": _constant(1),
    "net": lambda s: s.prog["init_net"].address_of_(),
    "net:dev": S.netdev,
    "tc:dev": S.netdev,
    "ifindex": _constant(1),
    "net:name": _constant("lo"),
    "table": lambda s: s.prog["arp_tbl"].address_of_(),
    "kt": lambda s: Object(s.prog, "ktime_t", 5),
    "value": _constant(1),
    "timer:base": lambda s: per_cpu(s.prog["timer_bases"], 0)[0].address_of_(),
    "clock_base": lambda s: per_cpu(s.prog["hrtimer_bases"], 0).clock_base[0].address_of_(),
}
