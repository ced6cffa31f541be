"""The commands of kvmctl."""

from __future__ import annotations

from libkvm.cli import args, dmesg, info, nlist, ps, read

COMMANDS = {
    "args": args.COMMAND,
    "dmesg": dmesg.COMMAND,
    "info": info.COMMAND,
    "nlist": nlist.COMMAND,
    "ps": ps.COMMAND,
    "read": read.COMMAND,
}
