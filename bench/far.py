"""A daemon that is far away: a relay that holds everything up on its way, and rows measured through it.

    python -m bench.far [--delay MILLISECONDS] [--rounds N]

Certificates are made for the purpose, which takes ``libkvm[pki]``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libkvm
from bench.dumps import unpacked
from bench.measure import in_turn, machine, seconds
from libkvm.cli.authority import Authority

_CHUNK = 256 << 10
_ROOM = 64  # chunks on their way at once, before the sender has to wait


class Relay:
    """Passes on what it gets, so many seconds later.

    :ivar port: where it listens on 127.0.0.1.
    :ivar received: bytes that came from the far end.
    """

    def __init__(self, port: int, delay: float) -> None:
        self._far, self._delay = port, delay
        self.port = self.received = 0

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, far_writer, counted=False))
                both.create_task(self._pass(far_reader, writer, counted=True))
        except asyncio.CancelledError:
            pass  # the end of all
        finally:
            writer.close()
            far_writer.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ROOM)
        sending = asyncio.ensure_future(self._send(queue, sink))
        try:
            while data := await source.read(_CHUNK):
                self.received += len(data) * counted
                await queue.put((time.monotonic() + self._delay, data))
        except ConnectionError:
            pass
        await queue.put((0.0, b""))
        await sending

    @staticmethod
    async def _send(queue: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        try:
            while (item := await queue.get())[1]:
                await asyncio.sleep(max(item[0] - time.monotonic(), 0))
                sink.write(item[1])
                await sink.drain()
        except ConnectionError:
            pass
        sink.close()


@contextmanager
def delayed(port: int, delay: float) -> Iterator[Relay]:
    """A relay to a port of this host's, in a thread of its own.

    :param delay: seconds that everything takes each way.
    """
    relay, loop, stop = Relay(port, delay), asyncio.new_event_loop(), asyncio.Event()
    ready = threading.Event()

    async def run() -> None:
        server = await relay.serve()
        ready.set()
        await stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait(10)
    try:
        yield relay
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A kvmd on a TCP port, which it answers, with connect()'s keywords for certificates."""
    with Authority.init(f"{folder}/pki", None) as authority:
        authority.issue("localhost", hosts=[])
        authority.issue("client")
    config, log = folder / "kvmd.toml", folder / "log"
    files = {"tls_cert": "localhost.crt", "tls_key": "localhost.key", "tls_client_ca": "ca.crt"}
    lines = [f'{key} = "{folder}/pki/{name}"' for key, name in files.items()]
    rule = '[[policy]]\nsubjects = ["cert:client"]\nimages = ["dump:*"]\nverbs = ["*"]\n'
    config.write_text("\n".join(["[listen]", 'tcp = "127.0.0.1:0"', *lines, rule]))
    command = [sys.executable, "-m", "kvmd", "--config", str(config), "--listen", f"unix:{folder}/kvmd.sock"]
    with log.open("w+") as said, subprocess.Popen([*command, "--dump-dir", str(folder)], stderr=said) as process:
        while not (port := re.search(r"ready on .*, tcp .*:(\d+)$", log.read_text(), re.MULTILINE)):
            time.sleep(0.05)
        names = {"tls_ca": "ca.crt", "tls_cert": "client.crt", "tls_key": "client.key"}
        try:
            yield int(port[1]), {key: f"{folder}/pki/{name}" for key, name in names.items()}
        finally:
            process.terminate()


def small(kernel: libkvm.Kernel, start: int, ahead: bool) -> float:
    """Seconds for 64 KiB in pieces of 64 bytes, each asked for when the one before is there."""
    if not ahead:
        kernel._ahead = None  # noqa: SLF001 - as it is without
    return seconds(lambda: [kernel.read(start + at, 64) for at in range(0, (64 << 10) if ahead else (2 << 10), 64)])


def rows(target: str, keywords: dict[str, str], relay: Relay, dump: Path, rounds: int) -> None:
    """Measure and print."""
    with libkvm.connect(target, **keywords) as client, client.open(str(dump)) as kernel:
        start = kernel.symbol("init_task").value & -4096
        with client.open(str(dump)) as plain:
            trip = in_turn(lambda: seconds(plain.load_average), lambda: 0.0, rounds)[0]
            ours, theirs = in_turn(lambda: small(kernel, start, True), lambda: small(plain, start, False), rounds)
    theirs *= 32  # as many pieces
    print(f"a call: {trip * 1e3:.1f} ms")
    print(
        f"64 KiB in 1,024 reads that follow one another: {ours * 1e3:.0f} ms, {ours / trip:.1f} calls' worth; ", end=""
    )
    print(f"without reading ahead {theirs * 1e3:.0f} ms: {theirs / ours:.0f} x")
    for compress in (False, True):
        with libkvm.connect(target, **keywords, compress=compress) as client, client.open(str(dump)) as kernel:
            before = relay.received
            took = in_turn(lambda: seconds(lambda: kernel.read(start, 1 << 20)), lambda: 0.0, rounds)[0]
            each = (relay.received - before) / (rounds + 1)
            print(
                f"1 MiB of data{', zstd' if compress else ''}: {took * 1e3:.0f} ms, {each / 1024:.0f} KiB on the wire"
            )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=20.0, help="milliseconds that everything takes each way")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as name:
        folder = Path(name)
        dump = folder / "vmcore"
        os.link(unpacked("debian-6.1-panic/vmcore.kdump"), dump)
        print(f"{machine()}\n{options.delay:g} ms each way, load {os.getloadavg()[0]:.1f} before")
        with daemon(folder) as (port, keywords), delayed(port, options.delay / 1e3) as relay:
            rows(f"dns:///localhost:{relay.port}", keywords, relay, dump, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
