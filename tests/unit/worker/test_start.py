"""What a worker runs before it is ready, and what after that, without any file."""

from __future__ import annotations

import subprocess
import sys

from images import fixture

_TELL = """
from types import ModuleType
print(*(name for name, module in list(sys.modules.items()) if type(module) is ModuleType))
"""
# main() ends at the first thing that it does with its arguments, of which there are none.
_BEGIN = """
import sys
from kvmd.worker.__main__ import main
sys.argv = ["kvmd.worker"]
try:
    main()
except ValueError:
    pass
"""
_ENTER = """
import os
from kvmd import late
from kvmd.images import registry
from kvmd.images.base import File, Files
from kvmd.v1 import process_pb2
from kvmd.worker.sandbox import SandboxLimits, enter
dump = os.open({dump!r}, os.O_RDONLY)
enter(SandboxLimits())
try:
    open("/etc/passwd")
except OSError:
    pass
else:
    raise SystemExit("this is no sandbox")
"""
_ALL = """
for _ in late.rest("kvmd.images"):
    pass
registry.formats()
"""
_USE = """
image = registry.open_image(Files(File(dump, "dump")))
image.symbols(["init_task"])
print(*(process.pid for process in image.processes(process_pb2.GetProcsRequest())))
"""
DUMP = "qemu/vmcore.kdump"


def ran(code: str) -> set[str]:
    """The modules that ran."""
    command = [sys.executable, "-c", code + _TELL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_what_most_images_do_not_need_runs_later() -> None:
    names = ran(_BEGIN)
    assert {"kvmd.images.base", "kvmd.images.linux.kdumpcodecs", "drgn", "lzma"} <= names
    early = {name for name in names if name.startswith(("kvmd.images.bsd.", "kvmd.images.linux.", "drgn.helpers."))}
    assert early == {"kvmd.images.linux.kdumpcodecs"}
    assert "google.protobuf.internal.python_message" not in names


def test_all_that_is_left_runs_without_files() -> None:
    names = ran(_BEGIN + _ENTER.format(dump=str(fixture(DUMP).path)) + _ALL)
    formats = {"kvmd.images.linux.live_image", "kvmd.images.bsd.formats", "kvmd.images.procfs.image"}
    assert formats | {"kvmd.images.linux.isf", "kvmd.images.linux.swap.codecs", "drgn.helpers.linux.mm"} <= names
    assert "drgn.cli" not in names  # which one of drgn's helpers imports


def test_a_dump_is_read_by_what_runs_meanwhile() -> None:
    names = ran(_BEGIN + _ENTER.format(dump=str(fixture(DUMP).path)) + _USE)
    assert {"kvmd.images.linux.kdump", "kvmd.images.linux.btf", "kvmd.images.linux.processes"} <= names
    assert "kvmd.images.linux.live_image" not in names


def test_the_running_kernel_needs_few_of_them() -> None:
    names = ran(_BEGIN + "from kvmd.images import registry\nfrom kvmd.images.linux.live_image import LiveImage\n")
    assert "kvmd.images.linux.kernel" in names
    unused = ("bsd.", "procfs.image", "linux.index", "linux.isf", "linux.scan.", "linux.swap.", "linux.unwind")
    assert not {name for name in names if name.startswith(tuple(f"kvmd.images.{each}" for each in unused))}
