"""The self-test at start: a daemon that can't tell its callers apart does not serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.front.listener import bind_unix
from kvmd.front.lock import InstanceLock
from kvmd.front.peer import Peer
from kvmd.front.peers import Connection, Peers
from kvmd.front.relay import Front
from kvmd.metrics import Metrics
from kvmd.rpc.server import Server


class Renamed(Peers):
    """Its keys are not what grpc echoes."""

    def lookup(self, grpc_peer: str) -> Connection | None:
        return super().lookup(f"ipv4:{grpc_peer}")


class Trusting(Peers):
    """Knows everybody, also who has not come through the front."""

    def lookup(self, grpc_peer: str) -> Connection | None:
        return Connection(Peer(0, 0, 1), "token", 0)


async def self_tested(peers: Peers, folder: Path) -> None:
    public, private = str(folder / "kvmd.sock"), str(folder / "grpc")
    quotas, nothing = Quotas(Limits()), cast("Any", SimpleNamespace())
    server = Server(peers, nothing, nothing, Metrics(quotas, nothing, nothing), Limits())
    await server.start(private)
    front = Front(peers, private, quotas["connections"])
    with InstanceLock(public) as lock:
        front.serve(bind_unix(public, 0o600, lock))
        try:
            await server.self_test(public)
        finally:
            front.close()
            await server.stop(0)


async def test_passes_where_grpc_echoes_the_token(tmp_path: Path) -> None:
    await self_tested(Peers(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "says"), [(Renamed, "through the front gave a refusal"), (Trusting, "one beside it an answer")]
)
async def test_fails_where_callers_can_not_be_told(tmp_path: Path, kind: type[Peers], says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        await self_tested(kind(), tmp_path)


@pytest.mark.parametrize("answer", ["None", "peers.Connection(peer.Peer(0, 0, 1), 'token', 0)"])
def test_daemon_refuses_to_serve(tmp_path: Path, answer: str) -> None:
    """Status 1, one line that says why, and nothing left behind."""
    code = (
        "import sys\n"
        "from kvmd.front import peer, peers\n"
        f"peers.Peers.lookup = lambda self, name: {answer}\n"
        "from kvmd.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    path, config = tmp_path / "kvmd.sock", tmp_path / "kvmd.toml"
    config.write_text("")
    words = ["--listen", f"unix:{path}", "--config", str(config)]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "self-test failed" in run.stderr
    assert "ready" not in run.stderr
    assert not path.exists()
    assert not Path(f"{path}.private").exists()
