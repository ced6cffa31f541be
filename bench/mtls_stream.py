"""256 MiB of one stream over mTLS on loopback: through kvmd's front, and from a bare gRPC server.

    python -m bench.mtls_stream [--rounds N] [--least RATIO]

`python -m bench` has a row of ReadStream, the whole way from a worker to libkvm, against the same bare server.

Both sides are the same grpc.aio server in a process of its own, with the same certificates (ECDSA P-256) and TLS 1.3;
on one of them grpc ends TLS, on the other the front does and relays to grpc. Each run makes its own connection, whose
first MiB doesn't count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

import libkvm
from bench import far
from bench.bulk import HIGH
from bench.measure import in_turn, machine, seconds
from bench.rows import Row
from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.front.certificates import TlsFiles
from kvmd.front.listener import bind_tcp
from kvmd.front.peers import Peers
from kvmd.front.refusals import Refusals
from kvmd.front.relay import Front
from kvmd.front.remote import Remote
from libkvm.cli.authority import Authority

MIB = 1 << 20
SIZE = 256
METHOD = "/bench.Bench/Stream"
CHUNK = os.urandom(MIB)


async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
    """As many MiB as are asked for."""
    for _ in range(int.from_bytes(request, "big")):
        yield CHUNK


async def serve(folder: Path) -> None:
    """Serve both ways, and say on which ports."""
    server = grpc.aio.server()
    methods = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bench", methods),))
    ca, cert, key = (folder / name for name in ("ca.crt", "localhost.crt", "localhost.key"))
    pair = [(key.read_bytes(), cert.read_bytes())]
    bare = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, ca.read_bytes(), True))
    server.add_insecure_port(f"unix:{folder}/private")
    await server.start()
    front = Front(Peers(), f"{folder}/private", Quotas(Limits())["connections"])
    remote = Remote(TlsFiles(str(cert), str(key), str(ca)), front.admit, Refusals(print))
    listening = bind_tcp("127.0.0.1", 0)
    front.serve(listening, greet=remote.take)
    print(bare, listening.getsockname()[1], flush=True)
    await asyncio.Event().wait()


def client(folder: Path, port: int) -> Callable[[], float]:
    """Makes a run: a new connection, one MiB, then all of it; how long the latter took."""
    ca, key, cert = ((folder / name).read_bytes() for name in ("ca.crt", "client.key", "client.crt"))
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    options = [("grpc.max_receive_message_length", 2 * MIB), ("grpc.use_local_subchannel_pool", 1)]

    def run() -> float:
        with grpc.secure_channel(f"localhost:{port}", credentials, options) as channel:
            call = channel.unary_stream(METHOD)
            list(call((1).to_bytes(4, "big")))
            began = time.perf_counter()
            got = sum(len(each) for each in call(SIZE.to_bytes(4, "big")))
            took = time.perf_counter() - began
        assert got == SIZE * MIB
        return took

    return run


@contextmanager
def serving(pki: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own, and its two ports: the bare one's and the front's."""
    command = [sys.executable, "-m", "bench.mtls_stream", "--serve", pki]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            bare, front = (int(word) for word in server.stdout.readline().split())
            yield bare, front
        finally:
            server.kill()


def own(folder: Path, dump: Path, rounds: int) -> Row:
    """ReadStream of a kvmd's, with all that it does for it, against as many bytes of the bare server.

    :param folder: for a daemon that serves the dump.
    """
    folder.mkdir()
    os.link(dump, folder / "vmcore")
    with far.daemon(folder) as (port, files), serving(f"{folder}/pki") as (bare, _):
        theirs = client(folder / "pki", bare)
        with libkvm.connect(f"dns:///localhost:{port}", **files) as remote, remote.open(f"{folder}/vmcore") as kernel:

            def run() -> float:
                pieces = kernel.stream(HIGH, SIZE * MIB, physical=True)
                return seconds(lambda: sum(map(len, pieces)))

            ours, other = in_turn(run, theirs, rounds)
    what = f"{SIZE} MiB by ReadStream, mTLS on loopback"
    return Row(what, "bare gRPC stream with the same TLS", ours / SIZE, other / SIZE, 0.8, least=True, unit="a MiB")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--least", type=float, default=0.0, help="fail below this ratio")
    parser.add_argument("--serve", metavar="FOLDER")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(Path(options.serve)))
    with tempfile.TemporaryDirectory() as name:
        with Authority.init(f"{name}/pki", None) as authority:
            authority.issue("localhost", hosts=[])
            authority.issue("client")
        with serving(f"{name}/pki") as ports:
            there, here = (client(Path(name, "pki"), port) for port in ports)
            took = in_turn(there, here, options.rounds)
    print(machine())
    rates = [SIZE / each for each in took]
    ratio = rates[1] / rates[0]
    print(f"bare gRPC {rates[0]:.0f} MiB/s, through the front {rates[1]:.0f} MiB/s: {ratio:.2f} x")
    return 1 if ratio < options.least else 0


if __name__ == "__main__":
    sys.exit(main())
