"""A client of kvmd: opens a dump and prints what is in it.

    python examples/tour.py TARGET DUMP [VMLINUX]

Owns nothing and needs no privilege: started by root, it becomes nobody before it connects.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

import libkvm
from libkvm.printable import printable

NOBODY = 65534


def hexdump(address: int, data: bytes) -> None:
    """Print 16 bytes a line."""
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        print(f"  {address + offset:016x}  {row.hex(' ', 1):<47}  {text}")


def facts(info: libkvm.Info) -> None:
    """Print which kernel this is and how it ended."""
    print(f"release    {info.release} ({info.machine}, {info.format})")
    print(f"banner     {info.banner}")
    if info.uptime_ns is not None:
        print(f"uptime     {info.uptime_ns / 1e9:.1f} s, load {' '.join(f'{load:.2f}' for load in info.load_average)}")
    if info.time_ns is not None:
        print(f"taken at   {datetime.fromtimestamp(info.time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC")
    print(f"panic      {info.panic_message or 'none: the kernel was running'}")
    print(f"symbols    {info.symbols}; types: {info.types}; KASLR offset {info.kaslr_offset or 0:#x}")


def processes(kernel: libkvm.Kernel) -> None:
    """Print the process table, with arguments where the dump has them."""
    print(f"\n{'PID':>6} {'PPID':>6} {'UID':>6} S  {'COMM':<16} ARGS")
    for process in kernel.processes(arguments=True):
        shown = "[kernel thread]" if process.kernel_thread else " ".join(process.args or ()) or "-"
        ids = f"{process.pid:>6} {process.ppid:>6} {process.uid:>6} {process.state}"
        print(f"{ids}  {printable(process.comm):<16} {printable(shown):.60}")  # both are the dump's words, not ours


def main(target: str, dump: str, vmlinux: str | None = None) -> None:
    """Run against the daemon at ``target``."""
    client = libkvm.connect(target)  # which it does at the first call
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    with client, client.open(corefile=dump, execfile=vmlinux) as kernel:
        print(f"client     pid {os.getpid()}, uid {os.geteuid()}, through {target}")
        facts(kernel.info)
        processes(kernel)
        symbol = kernel.symbol("linux_banner")
        print(f"\nlinux_banner = {symbol.value:#x}")
        hexdump(symbol.value, kernel.read(symbol.value, 64))


if __name__ == "__main__":
    main(*sys.argv[1:])
