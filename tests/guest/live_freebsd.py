"""FreeBSD's 13 cases on the running kernel, as a user: tests/contract/test_freebsd.py with this daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from guest import TARGET

SOURCE = "/job/source"


def freebsd() -> str:
    """All of them pass, over every transport of the contract tests."""
    run = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_freebsd.py"]
    environment = {**os.environ, "KVMD_TEST_LIVE": "1", "KVMD_TARGET": TARGET, "PYTHONDONTWRITEBYTECODE": "1"}
    work = {"cwd": SOURCE, "env": environment, "user": "alice", "group": "alice", "extra_groups": []}
    tests = subprocess.run([sys.executable, *run], capture_output=True, text=True, check=False, **work)
    assert tests.returncode == 0, tests.stdout[-6000:] + tests.stderr[-2000:]
    passed = re.search(r"(\d+) passed", tests.stdout)
    assert passed, tests.stdout
    names = set(re.findall(r"def (test_kvm_\w+)", Path(SOURCE, "tests/contract/test_freebsd.py").read_text()))
    assert len(names) == 13, names
    assert int(passed[1]) >= 13
    return f"{len(names)} cases, {passed[0]}"


FREEBSD = {"freebsd": freebsd}
