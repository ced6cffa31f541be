"""The commands of kvmctl."""

from __future__ import annotations

from libkvm.cli import admin, args, bt, cpus, dmesg, doctor, files, info, loadavg, nlist, pki, policy, ps, read, swap
from libkvm.cli.command import Command, Tool

COMMANDS: dict[str, Command | Tool] = {
    "admin": admin.TOOL,
    "args": args.COMMAND,
    "bt": bt.COMMAND,
    "cpus": cpus.COMMAND,
    "dmesg": dmesg.COMMAND,
    "doctor": doctor.TOOL,
    "files": files.COMMAND,
    "info": info.COMMAND,
    "loadavg": loadavg.COMMAND,
    "nlist": nlist.COMMAND,
    "pki": pki.TOOL,
    "policy": policy.TOOL,
    "ps": ps.COMMAND,
    "read": read.COMMAND,
    "swap": swap.COMMAND,
}
