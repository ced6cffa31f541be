"""Records what drgn reads from a vmlinux with DWARF, for tests to compare BTF and kallsyms with.

    python tests/guest/dwarf_truth.py VMLINUX DUMP > tests/data/FOLDER/dwarf.json

VMLINUX is of the dump's own build: for the Debian dump, the package linux-image-6.1.0-56-cloud-amd64-dbg.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress

import drgn
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.fs import for_each_mount, mount_dst
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.printk import get_printk_records
from drgn.helpers.linux.slab import for_each_slab_cache

from kvmd.images.linux import elf
from kvmd.images.linux.objects.table import OBJECTS
from kvmd.images.linux.program import ARCHITECTURES
from kvmd.images.linux.source import FileSource

STRUCTS = {
    "task_struct": "pid tgid real_parent group_leader tasks thread_group comm __state state exit_state flags mm "
    "active_mm cred real_cred signal static_prio prio start_boottime stack thread_pid nsproxy files fs thread",
    "mm_struct": "pgd arg_start arg_end env_start env_end rss_stat total_vm mm_users mm_mt brk start_stack",
    "cred": "uid gid euid egid suid group_info user_ns",
    "signal_struct": "tty nr_threads pids leader group_stop_count rlim",
    "pid": "count level tasks rcu",
    "upid": "nr ns",
    "page": "flags mapping _refcount lru compound_head private",
    "module": "name list core_layout kallsyms state init_layout",
    "vm_area_struct": "vm_start vm_end vm_mm vm_flags vm_file vm_pgoff",
    "file": "f_path f_inode f_op f_flags f_pos",
    "dentry": "d_name d_parent d_inode d_sb",
    "super_block": "s_list s_dev s_type s_root s_id",
    "tty_struct": "name driver index ctrl count",
    "printk_ringbuffer": "desc_ring text_data_ring fail",
    "net_device": "name ifindex mtu flags",
    "inet_sock": "sk inet_saddr inet_sport",
    "inode": "i_ino i_mode i_sb i_size i_uid i_mapping",
    "vfsmount": "mnt_root mnt_sb mnt_flags",
}
BIT_FIELDS = {"task_struct": "sched_reset_on_fork in_execve", "signal_struct": "is_child_subreaper"}
CONSTANTS = ("PIDTYPE_SID", "MM_ANONPAGES", "NR_MM_COUNTERS", "PG_locked")
SYMBOLS = """init_task linux_banner jiffies_64 init_top_pgt init_pid_ns modules prb avenrun init_uts_ns runqueues
schedule do_exit vfs_read tcp_v4_rcv panic sys_call_table __per_cpu_offset nr_cpu_ids saved_command_line"""
PER_CPU = "runqueues kernel_cpustat tick_cpu_sched current_task pcpu_hot irq_stat cpu_number"


def known(prog: drgn.Program, struct: str) -> drgn.Type | None:
    """A struct of this kernel."""
    try:
        return prog.type(f"struct {struct}")
    except LookupError:
        return None


def member(kind: drgn.Type, name: str) -> list[int]:
    """Offset and size of a member, in bits."""
    found = kind.member(name)
    size = found.bit_field_size or 8 * drgn.sizeof(found.type)
    return [found.bit_offset, size]


def modules(prog: drgn.Program) -> Iterable[drgn.Object]:
    """Give the loaded modules, of kernels that can have some."""
    return for_each_module(prog) if "modules" in symbols(prog, ["modules"]) else ()


def symbols(prog: drgn.Program, names: Iterable[str]) -> dict[str, list[int]]:
    """Address and size of those that the kernel has."""
    found = {}
    for name in names:
        with suppress(LookupError):
            symbol = prog.symbol(name)
            found[name] = [symbol.address, symbol.size]
    return found


def objects(prog: drgn.Program) -> dict[str, list[int]]:
    """What kvmd looks for where kallsyms has no data."""
    return symbols(prog, (*OBJECTS, "__per_cpu_offset", *PER_CPU.split()))


def escaped(text: bytes) -> str:
    """As /dev/kmsg shows it (kernel/printk/printk.c, append_char)."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}" for byte in text)


def main() -> None:
    """Print the document."""
    with open(sys.argv[1], "rb") as vmlinux:  # libkdumpfile does not tell drgn the architecture of every dump
        machine = elf.header(FileSource(vmlinux.fileno())).machine
    prog = drgn.Program(drgn.Platform(ARCHITECTURES[machine]))
    prog.set_core_dump(sys.argv[2])
    prog.load_debug_info([sys.argv[1]])
    members, sizes = {}, {}
    for table in (STRUCTS, BIT_FIELDS):
        for struct, names in table.items():
            kind = known(prog, struct)
            if kind is not None:
                sizes[struct] = drgn.sizeof(kind)
                there = filter(kind.has_member, names.split())
                members |= {f"{struct}.{name}": member(kind, name) for name in there}
    document = {
        "members": members,
        "sizes": sizes,
        "symbols": symbols(prog, SYMBOLS.split()),
        "objects": objects(prog),
        "constants": {name: prog[name].value_() for name in CONSTANTS},
        "tasks": sorted(
            [task.pid.value_(), task.comm.string_().decode(), task.value_()] for task in for_each_task(prog)
        ),
        "modules": sorted(module.name.string_().decode() for module in modules(prog)),
        "caches": sorted(cache.name.string_().decode() for cache in for_each_slab_cache(prog)),
        "mounts": sorted(mount_dst(mount).decode() for mount in for_each_mount(prog)),
        "log": [[record.seq, escaped(record.text)] for record in get_printk_records(prog)],
        "cpus": list(for_each_online_cpu(prog)),
    }
    sys.stdout.write(json.dumps(document, indent=0) + "\n")


if __name__ == "__main__":
    main()
