"""The main job from end to end: a daemon on a private socket, a client beside it, both ended cleanly.

    python examples/demo.py [DUMP [VMLINUX]]

Without DUMP it serves the dump in tests/data: a panicked Debian 12 kernel, with no debuginfo at all.
"""

from __future__ import annotations

import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent / "tests" / "data" / "debian-6.1-panic" / "vmcore.kdump.xz"


def unpacked(folder: Path) -> Path:
    """The shipped dump, unpacked."""
    dump = folder / "vmcore"
    with lzma.open(SHIPPED) as packed, dump.open("wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    return dump


@contextmanager
def daemon(folder: Path, directories: set[Path]) -> Iterator[str]:
    """A kvmd of our own that lets nobody (uid 65534), who is the client where we are root, read these directories."""
    config = folder / "kvmd.toml"
    config.write_text(
        '[[policy]]\nsubjects = ["uid:65534"]\nimages = ["dump:*"]\n'
        'verbs = ["info", "symbols", "read", "processes", "arguments"]\n'
    )
    target = f"unix:{folder}/kvmd.sock"
    command = [sys.executable, "-m", "kvmd", "--config", str(config), "--listen", target]
    for directory in sorted(directories):
        command += ["--dump-dir", str(directory)]
    print("$ kvmd", *command[3:], flush=True)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready on" in line:
                break
        else:
            sys.exit("kvmd did not start")
        try:
            yield target
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
    print(f"kvmd       ended with status {process.returncode}")


def main(words: list[str]) -> int:
    """Run daemon and client."""
    with tempfile.TemporaryDirectory(prefix="kvmd-demo-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the client, another user, must reach the socket
        files = [Path(word).resolve() for word in words] or [unpacked(folder)]
        with daemon(folder, {file.parent for file in files}) as target:
            print("$ python examples/tour.py", target, *files, flush=True)
            client = subprocess.run([sys.executable, str(HERE / "tour.py"), target, *map(str, files)], check=False)
        return client.returncode


if __name__ == "__main__":
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    sys.exit(main(sys.argv[1:]))
