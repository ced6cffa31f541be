"""The command ``kvmd``: see kvmd(8)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace

from kvmd import __version__
from kvmd.config import DEFAULT_PATH, DEFAULT_SOCKET, Config, ConfigError, load
from kvmd.daemon import serve
from kvmd.front.lock import ListenError


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kvmd", description="Serves kernel memory and crash dumps.")
    add = parser.add_argument
    add("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_PATH} if it exists)")
    add("--listen", metavar="TARGET", help=f"where to listen: unix:/path (default: unix:{DEFAULT_SOCKET})")
    add("--dump-dir", metavar="DIR", action="append", default=[], help="serve DIR, not the configured directories")
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
        config = replace(config, listen=replace(config.listen, unix=os.path.abspath(path)))
    if options.dump_dir:
        directories = tuple(os.path.abspath(path) for path in options.dump_dir)
        config = replace(config, dumps=replace(config.dumps, directories=directories))
    return config


def main(words: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground.

    :returns: 0 after SIGTERM or SIGINT, 1 if it can't run, 2 for wrong usage or configuration.
    """
    options = _arguments(words)
    logging.basicConfig(format="kvmd: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        config = _settle(options)
    except ConfigError as wrong:
        print(f"kvmd: {wrong}", file=sys.stderr)
        return 2
    if options.check_config:
        print(f"{options.config or 'configuration'}: {len(config.policy.rules)} rules, no errors")
        return 0
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what passes through may be secret
    try:
        asyncio.run(serve(config, options.config))
    except (ListenError, OSError, RuntimeError) as failure:
        print(f"kvmd: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
