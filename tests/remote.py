"""A daemon that clients of other hosts can reach, with certificates made for the purpose."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import libkvm
from authority import Authority, Pair
from daemon import Daemon, running_daemon
from images import fixture

IMAGE = fixture("qemu/vmcore.kdump")
BANNER = IMAGE.truth["kallsyms"]["linux_banner"]

RULE = '\n[[policy]]\nsubjects = ["cert:{}"]\nimages = ["dump:*"]\nverbs = ["*"]\n'


@dataclass
class Site:
    """An authority, a server's certificate and one client's, ``alice``."""

    authority: Authority
    server: Pair
    alice: Pair

    @classmethod
    def made(cls, folder: Path) -> Site:
        authority = Authority(folder)
        return cls(authority, authority.server(), authority.issue("alice"))

    def config(self, more: str = "", rules: str = RULE.format("alice"), crl: bool = False) -> str:
        files = {"tls_cert": self.server.cert, "tls_key": self.server.key, "tls_client_ca": self.authority.ca}
        if crl:
            files["tls_client_crl"] = self.authority.crl()
        lines = [f'{key} = "{value}"' for key, value in files.items()]
        return "\n".join(["[listen]", 'tcp = "127.0.0.1:0"', *lines, more, rules])

    def keywords(self, pair: Pair | None = None) -> dict[str, str]:
        pair = pair or self.alice
        return {"tls_ca": self.authority.ca, "tls_cert": pair.cert, "tls_key": pair.key}

    def connect(self, target: str, pair: Pair | None = None, **more: object) -> libkvm.Client:
        return libkvm.connect(target, **self.keywords(pair), **more)


def port_of(daemon: Daemon) -> int:
    """Where it listens, by what it said."""
    (found,) = [match for line in daemon.log if (match := re.search(rb"ready on .*, tcp .*:(\d+)$", line.strip()))]
    return int(found[1])


@contextlib.contextmanager
def remote_daemon(config: str, dump_dirs: Sequence[object] = ()) -> Iterator[tuple[Daemon, str]]:
    """Run a daemon; answers it and its target for other hosts."""
    with running_daemon(dump_dirs, config) as daemon:
        yield daemon, f"dns:///localhost:{port_of(daemon)}"


def said(daemon: Daemon, word: str, seconds: float = 5) -> str:
    """The first line of the log that holds a word."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in list(daemon.log):
            if word in line.decode():
                return line.decode()
        time.sleep(0.02)
    raise AssertionError(f"{word!r} is not in the log: {b''.join(daemon.log).decode()}")


def records(daemon: Daemon, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line[7:]) for line in list(daemon.log) if line.startswith(b"audit: ")]
    return [line for line in lines if line["event"] == event]


def eventually(what: Callable[[], object], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def refusal(client: libkvm.Client) -> libkvm.KvmError:
    with client, pytest.raises(libkvm.KvmError) as failure:
        client.open(IMAGE.path).close()
    return failure.value
