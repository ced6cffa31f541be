"""kvmctl's command line."""

from __future__ import annotations

import argparse

from libkvm.cli.command import TLS, Tool
from libkvm.cli.table import COMMANDS


def parser() -> argparse.ArgumentParser:
    """Build the parser; the chosen command is the namespace's ``command``."""
    top = argparse.ArgumentParser(prog="kvmctl", description="Look into a kernel or a crash dump through kvmd(8).")
    _common(top, None, json=False)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=f"kvmctl {name}: {command.help}.")
        sub.set_defaults(command=command)
        # Accepted here too; absent, they must not undo what stood before the command.
        _common(sub, argparse.SUPPRESS, json=argparse.SUPPRESS)
        command.arguments(sub)
        if isinstance(command, Tool):
            continue
        image = sub.add_argument_group("image")
        image.add_argument("-M", "--core", metavar="CORE", help="a crash dump; default: the running kernel")
        image.add_argument("-N", "--exec", metavar="EXEC", help="the kernel's file with symbols; default: the image's")
        image.add_argument("-W", "--swap", metavar="SWAP", help="the dump's swap areas, joined by ':'")
        image.add_argument("--any-swap", action="store_true", help="believe SWAP where the dump can't show it right")
        image.add_argument("--no-files", action="store_true", help="no image at all: what /proc shows this user")
    return top


def _common(to: argparse.ArgumentParser, default: str | None, *, json: bool | str) -> None:
    help_ = "unix:/path or dns:///host:port of a kvmd; default: KVMD_TARGET"
    to.add_argument("--target", metavar="TARGET", default=default, help=help_)
    for word, what in TLS.items():
        option = f"--tls-{word}"
        to.add_argument(option, metavar="FILE", default=default, help=f"{what}; default: KVMD_TLS_{word.upper()}")
    to.add_argument("--json", action="store_true", default=json, help="print one JSON document")
    to.add_argument("--timeout", metavar="SECONDS", type=float, default=default, help="how long a call may take")
