"""``kvmctl pki``: certificates for those who have no authority of their own."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from libkvm.cli.command import Answer, Tool
from libkvm.errors import Reason, error

if TYPE_CHECKING:
    from libkvm.cli.authority import Authority

_FOLDER = "pki"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    init = commands.add_parser("init", help="make an authority")
    init.add_argument("--name", help="its name; default: kvmd authority of HOST")
    init.set_defaults(action=_init)
    issue = commands.add_parser("issue", help="issue a certificate")
    issue.add_argument("name", metavar="NAME", help="the client's name (cert:NAME of a rule); of a server, its host")
    issue.add_argument("--server", action="store_true", help="for a server")
    issue.add_argument("--host", action="append", default=[], help="a further name or address of the server")
    issue.add_argument("--days", type=int, help="how long it is valid; default: 365")
    issue.add_argument("--renew", action="store_true", help="replace the files of the one that the name has")
    issue.set_defaults(action=_issue)
    revoke = commands.add_parser("revoke", help="revoke certificates, and renew the revocation list")
    revoke.add_argument("name", metavar="NAME", nargs="*", help="all certificates of this name")
    revoke.add_argument("--serial", metavar="HEX", action="append", default=[], help="the one of this serial number")
    revoke.set_defaults(action=_revoke)
    for each in (init, issue, revoke):
        each.add_argument("--dir", default=_FOLDER, help=f"the authority's folder; default: {_FOLDER}")
        each.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")


def _authority() -> type[Authority]:
    try:
        from libkvm.cli.authority import Authority as Found  # noqa: PLC0415 - an extra's library
    except ImportError:
        raise error(Reason.UNSUPPORTED, "kvmctl pki needs: pip install 'libkvm[pki]'") from None
    return Found


def _init(options: argparse.Namespace) -> Answer:
    made = _authority().init(options.dir, options.name)
    document = {name: str(made.folder / f"ca.{name}") for name in ("crt", "key", "crl")}
    lines = [
        f"{document['crt']}: the authority, for listen.tls_client_ca and KVMD_TLS_CA",
        f"{document['crl']}: its revocation list, for listen.tls_client_crl",
        f"{document['key']}: its private key; who has it can become anybody",
    ]
    return Answer(document, lines)


def _issue(options: argparse.Namespace) -> Answer:
    if options.host and not options.server:
        raise error(Reason.BAD_ARGUMENT, "--host goes with --server: the name of a client is NAME alone")
    hosts = options.host if options.server else None
    days = {} if options.days is None else {"days": options.days}
    with _opened(options.dir) as authority:
        made = authority.issue(options.name, hosts=hosts, renew=options.renew, **days)
    uses = ("listen.tls_cert", "listen.tls_key") if options.server else ("KVMD_TLS_CERT", "KVMD_TLS_KEY")
    lines = [
        f"{made.certificate}: for {uses[0]}; serial {made.serial}, until {made.expires}",
        f"{made.key}: its private key, for {uses[1]}",
    ]
    return Answer(dataclasses.asdict(made), lines)


def _revoke(options: argparse.Namespace) -> Answer:
    with _opened(options.dir) as authority:
        serials = authority.revoke(options.name, options.serial)
        path = str(authority.folder / "ca.crl")
    lines = [f"{serial}: revoked" for serial in serials]
    return Answer({"revoked": serials, "crl": path}, [*lines, f"{path}: the new list; bring it to every kvmd"])


def _opened(folder: str) -> Authority:
    made = _authority()(folder)
    if not (made.folder / "ca.key").exists():
        message = f"{folder}: no authority is there; kvmctl pki init makes one (--dir names another folder)"
        raise error(Reason.BAD_ARGUMENT, message, path=folder)
    return made


TOOL = Tool("make and revoke certificates", lambda options: options.action(options), arguments)
