"""What the command ``kvmd`` does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Sequence

from kvmd import __version__, log
from kvmd.config import DEFAULT_PATH, DEFAULT_SOCKET, Config, ConfigError, load
from kvmd.front import certificates
from kvmd.front.lock import ListenError
from kvmd.start import serve
from kvmd.syscalls import keep_freed_memory


def _seconds(word: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(word)) < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"{word!r} is not a time in seconds")


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kvmd", description="Serves kernel memory and crash dumps.")
    add = parser.add_argument
    add("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_PATH} if it exists)")
    add("--listen", metavar="TARGET", help=f"where to listen: unix:/path (default: unix:{DEFAULT_SOCKET})")
    add("--dump-dir", metavar="DIR", action="append", default=[], help="serve DIR, not the configured directories")
    add("--idle-exit", metavar="SECONDS", type=_seconds, help="exit after so long without clients (under systemd)")
    add("--check-config", action="store_true", help="check the configuration and exit")
    add("--version", action="version", version=f"kvmd {__version__}")
    return parser.parse_args(words)


def _settle(options: argparse.Namespace) -> Config:
    """The configuration with the command line's words in place of its own."""
    config = load(options.config)
    if options.listen is not None:
        scheme, colon, path = options.listen.partition(":")
        if not colon or scheme != "unix" or not path:
            raise ConfigError(f"--listen {options.listen}: must be unix:/path")
        config = config.replace(listen=config.listen.replace(unix=os.path.abspath(path)))
    if options.dump_dir:
        directories = tuple(os.path.abspath(path) for path in options.dump_dir)
        config = config.replace(dumps=config.dumps.replace(directories=directories))
    return config


def main(words: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground.

    :returns: 0 after SIGTERM or SIGINT, 1 if it can't run, 2 for wrong usage or configuration.
    """
    options = _arguments(words)
    log.start()
    keep_freed_memory()
    try:
        config = _settle(options)
        if config.listen.tls is not None:
            certificates.load(config.listen.tls)
    except (ConfigError, certificates.CertificateError) as wrong:
        print(f"kvmd: {wrong}", file=sys.stderr)
        return 2
    if options.check_config:
        print(f"{options.config or 'configuration'}: {len(config.policy.rules)} rules, no errors")
        return 0
    log.start(config.log.level, config.log.format)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what passes through may be secret
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the usual 1024 is 250 connections
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # or asyncio would have a handler of its own until the daemon does
    try:
        asyncio.run(serve(config, options.config, options.idle_exit))
    except (ListenError, OSError, RuntimeError) as failure:
        print(f"kvmd: {failure}", file=sys.stderr)
        return 1
    return 0
