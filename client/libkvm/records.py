"""What libkvm answers: frozen dataclasses, made from the wire's messages by :mod:`libkvm.convert`.

A field has the name of the message's field unless its ``wire`` metadata say otherwise; ``record`` is the class of the
records that it holds. Bytes that the
kernel does not promise to be text decode as UTF-8 with surrogate escapes: ``os.fsencode`` gives them back.
"""

from __future__ import annotations

import dataclasses

from libkvm.errors import KvmError


@dataclasses.dataclass(frozen=True, slots=True)
class Info:
    """Facts about an opened image; what it has no value for is None or empty.

    :ivar format: the name of the format, such as ``kdump-zstd`` or ``elf``.
    :ivar live: whether this is the running kernel.
    :ivar release: uname(2)'s field, as are ``version``, ``machine`` and ``nodename``.
    :ivar banner: the line of /proc/version.
    :ivar page_size: in bytes.
    :ivar kaslr_offset: how far KASLR moved the kernel's virtual addresses.
    :ivar phys_base: the physical address of the kernel's first byte minus its linked one.
    :ivar uptime_ns: nanoseconds since boot when the image was taken.
    :ivar time_ns: the wall clock then, in nanoseconds since 1970.
    :ivar panic_message: the panic's text, if the kernel had panicked.
    :ivar cpus_online: how many CPUs were online.
    :ivar memory_bytes: the pages that the kernel manages, in bytes.
    :ivar taint: the letters of /proc/sys/kernel/tainted; empty if untainted.
    :ivar build_id: the kernel's build id, in hexadecimal digits.
    :ivar paging_levels: levels of page tables.
    :ivar symbols: where symbols come from: ``execfile``, ``kallsyms``, ``scan`` or ``vmcoreinfo``.
    :ivar types: where types come from: ``btf``, ``dwarf`` or ``isf``.
    :ivar load_average: over 1, 5 and 15 minutes.
    """

    format: str
    live: bool
    release: str
    version: str
    machine: str
    nodename: str
    banner: str
    page_size: int
    kaslr_offset: int | None
    phys_base: int | None
    uptime_ns: int | None
    time_ns: int | None
    panic_message: str | None
    cpus_online: int | None
    memory_bytes: int | None
    taint: str | None
    build_id: str | None
    paging_levels: int | None
    symbols: str
    types: str
    load_average: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol of the kernel.

    :ivar name: as asked for.
    :ivar value: the address, KASLR included; of a per-CPU symbol the offset.
    :ivar n_type: nlist(3)'s: N_ABS 2, N_TEXT 4, N_DATA 6, N_BSS 8, or-ed with N_EXT 1 if global.
    :ivar size: in bytes; 0 where the source does not know it.
    :ivar source: ``execfile``, ``kallsyms``, ``scan`` (kallsyms that memory was scanned for) or ``vmcoreinfo``.
    :ivar module: the module that holds it; empty for the kernel's own.
    """

    name: str
    value: int
    n_type: int
    size: int
    source: str
    module: str


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process or thread of an image.

    :ivar pid: equals ``tgid`` for a thread group's leader.
    :ivar uid: the real user id, as ``gid`` is the real group id; ``euid`` and ``egid`` are the effective ones.
    :ivar state: one letter as in proc_pid_stat(5).
    :ivar start_time_ns: when it began, in nanoseconds after boot, suspension included.
    :ivar rss_bytes: resident memory; None for a kernel thread and a zombie, as is ``vsz_bytes``.
    :ivar comm: the name, at most 15 bytes.
    :ivar task_address: the address of its struct task_struct.
    :ivar num_threads: how many threads the group has.
    :ivar tty: the controlling terminal's device number, or None.
    :ivar args: the arguments if they were asked for, else None.
    :ivar args_error: why ``args`` is not the whole of them, or None.
    """

    pid: int
    tgid: int
    ppid: int
    pgid: int
    sid: int
    uid: int
    gid: int
    euid: int
    egid: int
    state: str
    nice: int
    start_time_ns: int
    rss_bytes: int | None
    vsz_bytes: int | None
    comm: str
    kernel_thread: bool
    task_address: int
    num_threads: int
    tty: int | None
    args: tuple[str, ...] | None = dataclasses.field(metadata={"wire": "arguments.values"})
    args_error: KvmError | None = dataclasses.field(metadata={"wire": "arguments.error"})


@dataclasses.dataclass(frozen=True, slots=True)
class DumpHeader:
    """The header of a NetBSD dump's file.

    :ivar header: all that precedes the memory there.
    :ivar device_bytes: how many bytes precede it on the dump device.
    """

    header: bytes = dataclasses.field(metadata={"raw": True})
    device_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the kernel's printk ring buffer.

    :ivar timestamp_ns: nanoseconds since boot.
    :ivar level: syslog(2)'s, 0 (emergency) to 7 (debug).
    :ivar facility: syslog(2)'s.
    :ivar sequence: the record's number.
    :ivar text: without a closing newline.
    :ivar continuation: whether it continues the record before it.
    """

    timestamp_ns: int
    level: int
    facility: int
    sequence: int
    text: str
    continuation: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ListElement:
    """An element of a linked list.

    :ivar address: where it begins.
    :ivar data: the bytes that were wanted, or those before ``error``.
    """

    address: int
    data: bytes = dataclasses.field(metadata={"raw": True})
    error: KvmError | None


@dataclasses.dataclass(frozen=True, slots=True)
class CString:
    """A string in memory.

    :ivar data: its bytes without the NUL; or as many as were wanted, or could be read.
    :ivar whole: whether a NUL ends them.
    :ivar error: why they end before.
    """

    data: bytes = dataclasses.field(metadata={"raw": True})
    whole: bool
    error: KvmError | None


@dataclasses.dataclass(frozen=True, slots=True)
class RangeResult:
    """The outcome of one range of :meth:`libkvm.Kernel.readv`.

    :ivar data: all bytes asked for, or those before the fault.
    :ivar error: why there are no more, or None.
    """

    data: bytes = dataclasses.field(metadata={"raw": True})
    error: KvmError | None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page, or run of equal pages, that the kernel's page tables map.

    :ivar virtual_address: where the kernel sees it.
    :ivar physical_address: where it is.
    :ivar length: in bytes: the page size, or that of a huge page.
    :ivar protection: VM_PROT_READ 1, VM_PROT_WRITE 2 and VM_PROT_EXECUTE 4, or-ed.
    :ivar direct_address: its address in the kernel's direct mapping of physical memory, or None.
    :ivar present: whether the image holds its bytes.
    """

    virtual_address: int
    physical_address: int
    length: int
    protection: int
    direct_address: int | None
    present: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU that there can be.

    :ivar number: from 0.
    :ivar online: whether it runs.
    :ivar offset: what is added, modulo 2**64, to a per-CPU symbol's value to find this CPU's own; None if unknown.
    :ivar current_task: the address of the struct task_struct that runs on it; None if unknown.
    """

    number: int
    online: bool
    offset: int | None
    current_task: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class CpuTimes:
    """How a CPU spent its time since boot, in nanoseconds, by the columns of /proc/stat.

    :ivar cpu: its number; -1 for the sum of all.
    """

    cpu: int
    user_ns: int
    nice_ns: int
    system_ns: int
    idle_ns: int
    iowait_ns: int
    irq_ns: int
    softirq_ns: int
    steal_ns: int
    guest_ns: int
    guest_nice_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class SwapArea:
    """A swap area.

    :ivar path: of the partition or file, as /proc/swaps names it.
    :ivar number: the kernel's number of it.
    :ivar kind: ``partition`` or ``file``.
    :ivar size_bytes: without the header page.
    :ivar used_bytes: how much of it is in use.
    :ivar priority: swapon(8)'s.
    :ivar uuid: of the area's header, as ``label``; empty where it isn't known.
    :ivar satisfied_by: what its pages are read from: a swap image's name, ``memory`` for zram; empty: nothing.
    """

    path: str
    number: int
    kind: str
    size_bytes: int
    used_bytes: int
    priority: int
    uuid: str = ""
    label: str = ""
    satisfied_by: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file of a process.

    :ivar path: as /proc/PID/fd/N shows it: ``/path``, ``/path (deleted)``, ``socket:[123]``, ``pipe:[7]`` ...
    :ivar type: ``regular``, ``directory``, ``character``, ``block``, ``fifo``, ``socket``, ``link`` or ``unknown``.
    :ivar flags: open(2)'s.
    :ivar position: the file's offset in bytes.
    :ivar device: the device number of its file system, as makedev(3) packs it.
    :ivar uid: the owner of the inode.
    :ivar file_address: the address of its struct file; None where the kernel's memory is not read.
    """

    pid: int
    fd: int
    path: str
    type: str
    flags: int
    position: int
    inode: int
    device: int
    uid: int
    file_address: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a kernel stack.

    :ivar pc: the instruction: after a call, the one after it.
    :ivar symbol: the function; empty where no symbol table names one.
    :ivar offset: how far ``pc`` is behind the function's first byte; 0 if inlined.
    :ivar module: the module that holds it; empty for the kernel's own.
    :ivar kind: ``call``; ``interrupted``: where an interrupt or exception came, or registers were saved; ``inline``:
        put into the frame below by the compiler (only an execfile with DWARF tells); ``found``: a call that was
        searched for on the stack, since nothing tells how the code above uses it.
    """

    pc: int
    symbol: str
    offset: int
    module: str
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """The kernel stack of a task.

    :ivar pid: the thread's id; 0 for a CPU's idle task.
    :ivar task_address: the address of its struct task_struct.
    :ivar cpu: the CPU that ran it, or None.
    :ivar frames: the innermost first.
    :ivar end: why there are no more: ``bottom`` and ``user`` (user space) are complete; ``no_unwind``: nothing tells
        how the last frame's code uses its stack; ``fault``: see ``error``; ``corrupt``: the stack contradicts itself;
        ``limit``: 256 frames; ``no_stack``: the task has ended; ``unspecified``: not begun, see ``error``.
    :ivar error: what could not be read, or None.
    """

    pid: int
    comm: str
    task_address: int
    cpu: int | None
    frames: tuple[Frame, ...] = dataclasses.field(metadata={"record": Frame})
    end: str
    error: KvmError | None

    @property
    def complete(self) -> bool:
        """Whether the trace reaches the stack's bottom or user space."""
        return self.end in ("bottom", "user")
