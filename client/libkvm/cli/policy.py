"""``kvmctl policy check``: what the policy decides, and which line of the configuration does."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from libkvm.cli.command import Answer, Tool
from libkvm.errors import Reason, error

_MOST = 60.0  # seconds; names of users may come from the network


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    check = commands.add_parser("check", help="say what is decided, by which line, and why")
    check.add_argument("--as", dest="subject", metavar="USER", help="USER, uid:N or cert:NAME; default: yourself")
    check.add_argument("--verb", required=True, help="info, symbols, read, ...: see kvmd(8)")
    check.add_argument("--config", metavar="FILE", help="the configuration; default: kvmd's")
    check.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    check.add_argument("image", metavar="IMAGE", help="live, live:mem, or a dump's absolute path")


def run(options: argparse.Namespace) -> Answer:
    """Ask kvmd's own code, in a process of its own: this one knows nothing of policies."""
    # -P: a folder named kvmd where the user stands must not be run in its place.
    command = [sys.executable, "-P", "-m", "kvmd.policy_check", "--verb", options.verb]
    for option, value in (("--config", options.config), ("--as", options.subject)):
        command += [f"{option}={value}"] if value is not None else []
    done = subprocess.run([*command, "--", options.image], capture_output=True, text=True, timeout=_MOST, check=False)  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise error(Reason.BAD_ARGUMENT, lines[-1].removeprefix("kvmd.policy_check: error: "))
    found: dict[str, Any] = json.loads(done.stdout)
    what = f"{found['subject']} to {found['verb']} {found['image']}"
    lines = [f"{each['rule']}: passed over: its {each['lacks']} do not match" for each in found["passed_over"]]
    if found["allowed"]:
        because = f": {', '.join(found['because'])}" if found["because"] else ""
        return Answer(found, [*lines, f"{found['rule']}: allows {what}{because}"])
    message = f"denied: no rule of {found['config']} allows {what}, and the default is no"
    return Answer(found, lines, [error(Reason.POLICY_DENIED, message, rule=found["rule"])])


TOOL = Tool("ask what the policy decides", run, arguments)
