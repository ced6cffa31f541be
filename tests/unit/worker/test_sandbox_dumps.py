"""drgn in the sandbox, with nothing but descriptors that were sent to it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest

from images import fixture

READ = """
sandbox.enter(SandboxLimits())
_, (fd,), *_ = socket.recv_fds(sock, 9, 1)
prog = drgn.Program()
prog.set_core_dump(fd)
"""


@pytest.fixture
def send(run):
    def start(path, code, **options):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            fd = os.open(path, os.O_RDONLY)
            socket.send_fds(ours, [b"x"], [fd])
            os.close(fd)
            return run(code, theirs, **options)

    return start


both_users = pytest.mark.parametrize(
    "root",
    [pytest.param(True, marks=pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")), False],
    ids=["root", "user"],
)


@both_users
@pytest.mark.parametrize("name", ["debian-6.1-panic/vmcore.kdump", "qemu/vmcore.elfd", "qemu/vmcore.kdump"])
def test_symbols_and_the_whole_image_of_the_kernel(send, name, root):
    image = fixture(name)
    banner, readable = send(
        image.path,
        READ + "prog.register_symbol_finder('k', load_vmlinux_kallsyms(prog), enable_index=0)\n"
        "start, end, readable = prog.symbol('_text').address, prog.symbol('_end').address, 0\n"
        "for address in range(start, end, 4096):\n"
        "  try: prog.read(address, 4096); readable += 1\n"
        "  except drgn.FaultError: pass\n"
        "tell(prog.read_c_string(prog.symbol('linux_banner').address).decode().strip()); tell(readable)",
        root=root,
    )
    assert banner == image.truth["banner"].strip()
    assert readable > 1000


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd", "raw", "flat-zlib", "flat-raw"])
def test_every_codec(send, codec):
    image = fixture(f"micro/{codec}")
    release = send(
        image.path,
        READ + "tell([l for l in prog['VMCOREINFO'].string_().decode().splitlines() if 'OSREL' in l])\n"
        "pages = 0\n"
        "for a in range(0, 256 << 20, 4096):\n"
        "  try: pages += bool(prog.read(a, 4096, physical=True))\n"
        "  except drgn.FaultError: pass\n"
        "tell(pages)",
    )
    assert release[0] == [f"OSRELEASE={image.truth['release']}"]
    assert release[1] > 10


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("threads", ["", "1", "4"])
def test_dwarf_is_read_with_threads_and_without(send, tmp_path, threads):
    """drgn indexes DWARF with OpenMP, which ends the process if it wants a thread and gets none."""
    (tmp_path / "a.c").write_text("struct foo { int a; char b[7]; }; struct foo x; int main(void) { return x.a; }")
    subprocess.run(["gcc", "-g", "-o", tmp_path / "a", tmp_path / "a.c"], check=True)
    limits = "SandboxLimits(threads=0)" if threads == "1" else "SandboxLimits()"
    size = send(
        tmp_path / "a",
        f"sandbox.enter({limits})\n_, (fd,), *_ = socket.recv_fds(sock, 9, 1)\nprog = drgn.Program()\n"
        "module = prog.extra_module('exec', create=True); module.try_file('a', fd=fd, force=True)\n"
        "tell(prog.type('struct foo').size)",
        env={"OMP_NUM_THREADS": threads} if threads else {},
    )
    assert size == 12
