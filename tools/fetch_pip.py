"""Puts pip into this virtual environment where neither ensurepip nor a package of the system's has it.

Downloads the newest wheel that the Python package index names (its JSON form: PEP 691), and checks it against the
index's digest.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import Request, urlopen

INDEX = "https://pypi.org/simple/pip/"
FORM = "application/vnd.pypi.simple.v1+json"


def main() -> None:
    """Download, check, install."""
    with urlopen(Request(INDEX, headers={"Accept": FORM}), timeout=60) as answer:
        files = json.load(answer)["files"]
    wheels = [item for item in files if item["filename"].endswith("-py3-none-any.whl") and not item.get("yanked")]
    wheel = max(wheels, key=lambda item: item["upload-time"])
    with urlopen(urljoin(INDEX, wheel["url"]), timeout=60) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != wheel["hashes"]["sha256"]:
        sys.exit(f"{wheel['url']}: digest differs from the index's")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, wheel["filename"])
        path.write_bytes(data)
        subprocess.run([sys.executable, f"{path}/pip", "install", "--quiet", "--no-index", str(path)], check=True)


if __name__ == "__main__":
    main()
