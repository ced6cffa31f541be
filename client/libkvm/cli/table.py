"""The commands of kvmctl."""

from __future__ import annotations

from libkvm.cli import args, cpus, dmesg, files, info, loadavg, nlist, ps, read, swap

COMMANDS = {
    "args": args.COMMAND,
    "cpus": cpus.COMMAND,
    "dmesg": dmesg.COMMAND,
    "files": files.COMMAND,
    "info": info.COMMAND,
    "loadavg": loadavg.COMMAND,
    "nlist": nlist.COMMAND,
    "ps": ps.COMMAND,
    "read": read.COMMAND,
    "swap": swap.COMMAND,
}
