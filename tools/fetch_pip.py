"""Puts pip into this virtual environment where neither ensurepip nor a package of the system's has it.

Downloads the newest wheel that the Python package index names, and checks it against the index's digest.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

INDEX = "https://pypi.org/pypi/pip/json"


def main() -> None:
    """Download, check, install."""
    with urllib.request.urlopen(INDEX, timeout=60) as answer:
        wheels = [item for item in json.load(answer)["urls"] if item["packagetype"] == "bdist_wheel"]
    wheel = wheels[0]
    with urllib.request.urlopen(wheel["url"], timeout=60) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit(f"{wheel['url']}: digest differs from the index's")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, wheel["filename"])
        path.write_bytes(data)
        subprocess.run([sys.executable, f"{path}/pip", "install", "--quiet", "--no-index", str(path)], check=True)


if __name__ == "__main__":
    main()
