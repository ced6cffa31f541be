"""Open files. The guest recorded none, so drgn's helpers are the oracle, what the guest's programs are known to open,
and for what these don't open, structures that a test bends."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
from drgn.helpers.linux.fs import d_path, for_each_file
from drgn.helpers.linux.pid import find_task

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.files import OpenFiles
from kvmd.images.linux.paths import Paths, init_root
from kvmd.v1 import process_pb2
from overlay import Overlay

CONSOLE = b"/dev/console"
SPARE = 0xDEAD_0000_0000_0000  # mapped nowhere; tests put structures there
TYPED = (Reason.NOT_MAPPED, Reason.CORRUPT_DATA, Reason.EXCLUDED, Reason.BAD_ARGUMENT, Reason.BEYOND_DUMP)


def processes(opened: Any) -> list[process_pb2.Process]:
    return list(opened.image.processes(process_pb2.GetProcsRequest()))


def plain(opened: Any) -> int:
    """The pid of a process that has three descriptors of the console open."""
    pid: int = next(p["pid"] for p in opened.truth["processes"] if p["zoo"] == "plain")
    return pid


def test_every_file_is_what_drgn_finds(dump: Any) -> None:
    prog, expected = dump.image.kernel.prog, []  # drgn does not say what was deleted
    for p in processes(dump):
        if p.kernel_thread or p.state == "Z":
            continue
        for fd, file in for_each_file(find_task(prog, p.pid)):
            inode = file.f_inode
            row = (p.pid, fd, d_path(file.f_path), inode.i_ino.value_(), inode.i_uid.val.value_(), file.value_())
            expected.append((*row, file.f_pos.value_(), file.f_flags.value_()))
    found = [
        (
            f.pid,
            f.fd,
            f.path.removesuffix(b" (deleted)"),
            f.inode,
            f.uid,
            f.file_address,
            f.position,
            f.flags & ~os.O_CLOEXEC,
        )
        for f in dump.image.files(0)
    ]
    assert found == expected == sorted(expected)
    assert len(found) >= 48


def test_the_zoo_has_the_console_open(dump: Any) -> None:
    files = list(dump.image.files(plain(dump)))
    assert [(f.pid, f.fd, f.path, f.type) for f in files] == [
        (plain(dump), fd, CONSOLE, "character") for fd in range(3)
    ]
    assert {(f.uid, f.device, f.file_address) for f in files} == {(0, files[0].device, files[0].file_address)}
    assert files[0].flags & os.O_ACCMODE == os.O_RDWR


def test_the_recorder_reads_the_kernels_memory(qemu: Any) -> None:
    files = {f.path: f for f in qemu.image.files(1)}
    kcore = files[b"/proc/kcore"]
    assert (kcore.type, kcore.flags) == ("regular", os.O_RDONLY | 0o100000)
    assert kcore.inode >= 0xF000_0000
    assert kcore.device != files[CONSOLE].device


def test_what_the_crash_kernel_was_loaded_from_is_gone(debian: Any) -> None:
    """The recorder removes the file while it has it open."""
    assert b"/boot/vmlinuz (deleted)" in [f.path for f in debian.image.files(1)]


def test_kernel_threads_and_zombies_have_none(dump: Any) -> None:
    none = {p.pid for p in processes(dump) if p.kernel_thread or p.state == "Z"}
    assert none
    assert not none & {f.pid for f in dump.image.files(0)}
    assert [list(dump.image.files(pid)) for pid in sorted(none)[:3]] == [[], [], []]


def test_a_thread_lists_its_process(qemu: Any) -> None:
    group = next(p for p in qemu.truth["processes"] if p["zoo"] == "threads")
    thread = max(t["tid"] for t in group["threads"])
    assert list(qemu.image.files(thread)) == list(qemu.image.files(group["pid"]))
    assert [f.pid for f in qemu.image.files(0)].count(group["pid"]) == 3


@pytest.mark.parametrize("pid", [-1, 3999, 1 << 30])
def test_no_such_process(qemu: Any, pid: int) -> None:
    with pytest.raises(KvmError) as caught:
        list(qemu.image.files(pid))
    assert caught.value.reason is Reason.NO_SUCH_PROCESS


class Bent:
    """A file of a process, and the kernel around it to bend."""

    def __init__(self, opened: Any, pid: int = 0, fd: int = 0) -> None:
        self.image, self.pid = opened.image, pid or plain(opened)
        self.kernel = Overlay(opened.image.kernel)
        task = find_task(self.kernel.prog, self.pid)
        self.table = task.files.fdt
        self.file = dict(for_each_file(task))[fd]
        self.dentry = self.file.f_path.dentry
        self.mount = self.place[0] - self.kernel.prog.type("struct mount").member("mnt").offset

    def bend_mount(self, member: str, value: int, mount: int = 0) -> None:
        at = self.kernel.prog.type("struct mount").member(member).offset
        self.kernel.put((mount or self.mount) + at, value)

    def paths(self) -> Paths:
        return Paths(self.kernel, init_root(self.kernel, self.image._processes.tasks))

    @property
    def place(self) -> tuple[int, int]:
        return self.file.f_path.mnt.value_(), self.dentry.value_()

    def show(self) -> bytes:
        return self.paths().path(self.place)

    def walk(self, pid: int | None = None) -> list[Any]:
        files = OpenFiles(self.kernel, self.image._processes.tasks)
        return list(files.walk(self.pid if pid is None else pid))

    def named_by(self, maker: str) -> None:
        """Give the file's dentry operations of which d_dname is the given function."""
        at = self.kernel.prog.type("struct dentry_operations").member("d_dname").offset
        self.kernel.put(SPARE + at, self.kernel.address(maker) if maker.isidentifier() else 0xFFFF_8888_0000_0000)
        self.kernel.put(self.dentry.d_op.address_, SPARE)


@pytest.fixture
def bent(qemu: Any) -> Bent:
    return Bent(qemu)


@pytest.fixture
def kcore(qemu: Any) -> Bent:
    """A file in another file system than the root's: /proc/kcore."""
    return Bent(qemu, 1, 4)


@pytest.mark.parametrize(
    ("maker", "shown"),
    [
        ("pipefs_dname", b"pipe:[%d]"),
        ("anon_inodefs_dname", b"anon_inode:console"),
        ("simple_dname", b"/console (deleted)"),
        ("?", b"rootfs:[%d]"),
    ],
)
def test_files_without_a_path(bent: Bent, maker: str, shown: bytes) -> None:
    bent.named_by(maker)
    number = bent.file.f_inode.i_ino.value_()
    assert bent.show() == (shown % number if b"%" in shown else shown)


def test_anonymous_inodes_have_no_type(bent: Bent) -> None:
    """From 6.16 on their inodes say that they are regular files; stat(2) does not."""
    bent.kernel.put(bent.file.f_inode.i_mode.address_, 0o100600, 2)
    assert bent.walk()[0].type == "regular"
    bent.named_by("anon_inodefs_dname")
    assert bent.walk()[0].type == "unknown"


@pytest.mark.parametrize(("operations", "name"), [("utsns_operations", b"uts"), ("pidns_operations", b"pid")])
def test_namespaces(bent: Bent, operations: str, name: bytes) -> None:
    bent.named_by("ns_dname")
    bent.kernel.put(bent.dentry.d_fsdata.address_, bent.kernel.address(operations))
    assert bent.show() == b"%s:[%d]" % (name, bent.file.f_inode.i_ino.value_())


class Sockets(Overlay):
    """A kernel with a function that this one, which has no network, lacks."""

    def builtin(self, name: str) -> Any:
        return self._kernel.builtin("pipefs_dname" if name == "sockfs_dname" else name)


def test_sockets(bent: Bent) -> None:
    bent.kernel = Sockets(bent.image.kernel)
    bent.named_by("pipefs_dname")
    assert bent.show() == b"socket:[%d]" % bent.file.f_inode.i_ino.value_()


def test_a_deleted_file_says_so(bent: Bent) -> None:
    bent.kernel.put(bent.dentry.d_hash.pprev.address_, 0)
    assert bent.show() == CONSOLE + b" (deleted)"


def test_a_root_is_a_slash(bent: Bent) -> None:
    root = init_root(bent.kernel, bent.image._processes.tasks)
    assert bent.paths().path(root) == b"/"


def test_paths_cross_mounts(kcore: Bent) -> None:
    assert kcore.show() == b"/proc/kcore"


def test_a_mount_that_is_gone_begins_at_its_own_top(kcore: Bent) -> None:
    kcore.bend_mount("mnt_parent", kcore.mount)
    assert kcore.show() == b"/kcore"


def test_a_file_that_was_moved_out_of_its_mount(kcore: Bent) -> None:
    kcore.bend_mount("mnt", SPARE)  # whose first member is the directory that is mounted
    assert kcore.show() == b"/"


def test_without_process_1s_root_paths_are_the_same(kcore: Bent) -> None:
    task = kcore.kernel.prog.type("struct task_struct")
    init = find_task(kcore.kernel.prog, 1).value_()
    kcore.kernel.put(init + task.member("fs").offset, 0)
    assert init_root(kcore.kernel, kcore.image._processes.tasks) == (0, 0)
    assert kcore.show() == b"/proc/kcore"


def directories(bent: Bent, count: int, name: bytes, loop: bool = False) -> None:
    """Put a chain of directories of one name between the file and the root of its mount."""
    dentry, top = bent.kernel.prog.type("struct dentry"), bent.dentry.d_parent.value_()
    size, kernel = 512, bent.kernel
    text = SPARE + 0x100_0000
    kernel.patches[text] = name
    blob = bytearray(size * count)
    for i in range(count):
        above = SPARE + size * (i + 1) if i + 1 < count else SPARE if loop else top
        at, qstr = i * size, dentry.member("d_name").offset
        for offset, value, width in (
            (dentry.member("d_parent").offset, above, 8),
            (qstr + kernel.prog.type("struct qstr").member("len").offset, len(name), 4),
            (qstr + kernel.prog.type("struct qstr").member("name").offset, text, 8),
        ):
            blob[at + offset : at + offset + width] = value.to_bytes(width, "little")
    kernel.patches[SPARE] = bytes(blob)
    kernel.put(bent.dentry.d_parent.address_, SPARE)


def test_longest_paths(bent: Bent) -> None:
    # "/dev" + 15 * "/<253>" + "/<..>" + "/console" of PATH_MAX - 1 bytes: what readlink still gives.
    directories(bent, 16, b"d" * 254)
    rest = len(b"/dev" + b"/console")
    assert bent.show() == b"/dev" + 16 * (b"/" + b"d" * 254) + b"/console"
    assert len(bent.show()) == 16 * 255 + rest
    directories(bent, 17, b"d" * 254)
    assert bent.show() == b""
    bent.kernel.put(bent.dentry.d_hash.pprev.address_, 0)
    directories(bent, 16, b"d" * 254)
    assert bent.show() == b""  # " (deleted)" makes it too long


@pytest.mark.parametrize("count", [2, 3, 700])
def test_directories_in_a_circle(bent: Bent, count: int) -> None:
    directories(bent, count, b"d", loop=True)
    with pytest.raises(KvmError) as caught:
        bent.walk()
    assert caught.value.reason is Reason.CORRUPT_DATA


def test_mounts_in_a_circle(kcore: Bent) -> None:
    size = kcore.kernel.prog.type("struct mount").size
    kcore.kernel.patches[SPARE] = kcore.kernel.memory.kernel(kcore.mount, size)
    top = kcore.file.f_path.mnt.mnt_root.value_()
    for mount, parent in ((kcore.mount, SPARE), (SPARE, kcore.mount)):
        kcore.bend_mount("mnt_parent", parent, mount)
        kcore.bend_mount("mnt_mountpoint", top, mount)
    with pytest.raises(KvmError) as caught:
        kcore.show()
    assert caught.value.reason is Reason.CORRUPT_DATA


@pytest.mark.parametrize("count", [1, 65, (1 << 26) + 64, 2**32 - 64])
def test_a_table_of_senseless_size(bent: Bent, count: int) -> None:
    bent.kernel.put(bent.table.max_fds.address_, count, 4)
    with pytest.raises(KvmError) as caught:
        bent.walk()
    assert caught.value.reason is Reason.CORRUPT_DATA


def test_a_table_larger_than_what_is_mapped(bent: Bent) -> None:
    bent.kernel.put(bent.table.max_fds.address_, 1 << 26, 4)
    began = time.perf_counter()
    with pytest.raises(KvmError) as caught:
        bent.walk()
    assert caught.value.reason in TYPED
    assert time.perf_counter() - began < 2


def test_descriptors_beyond_the_first_word_and_those_closed_on_exec(bent: Bent) -> None:
    file = bent.file.value_()
    for member, words in (("open_fds", (0, 1 << 5)), ("close_on_exec", (0, 1 << 5))):
        bent.kernel.put(bent.table.member_(member).address_, SPARE + len(bent.kernel.patches) * 0x1000)
        bent.kernel.patches[SPARE + (len(bent.kernel.patches) - 1) * 0x1000] = b"".join(
            w.to_bytes(8, "little") for w in words
        )
    bent.kernel.put(bent.table.max_fds.address_, 128, 4)
    bent.kernel.put(bent.table.fd.address_, SPARE + 0x10_0000)
    bent.kernel.patches[SPARE + 0x10_0000] = bytes(69 * 8) + file.to_bytes(8, "little") + bytes(58 * 8)
    (found,) = bent.walk()
    assert (found.fd, found.path, found.flags & os.O_CLOEXEC) == (69, CONSOLE, os.O_CLOEXEC)


def test_a_table_full_of_nonsense_is_given_up(bent: Bent) -> None:
    bits = 1 << 20
    bent.kernel.put(bent.table.max_fds.address_, bits, 4)
    for member in ("open_fds", "close_on_exec"):
        bent.kernel.put(bent.table.member_(member).address_, SPARE)
    bent.kernel.patches[SPARE] = b"\xff" * (bits // 8)
    bent.kernel.put(bent.table.fd.address_, SPARE + bits)
    bent.kernel.patches[SPARE + bits] = b"\x42" * (bits * 8)
    began = time.perf_counter()
    with pytest.raises(KvmError) as caught:
        bent.walk()
    assert caught.value.reason is Reason.NOT_MAPPED
    assert time.perf_counter() - began < 2


def test_what_can_be_read_comes_before_the_error(bent: Bent) -> None:
    row = bent.table.fd.value_()
    bent.kernel.put(row + 8, SPARE)
    found: list[Any] = []
    try:
        for file in OpenFiles(bent.kernel, bent.image._processes.tasks).walk(0):
            found.append(file)  # noqa: PERF402 - it fails in the end
    except KvmError as e:
        assert e.reason is Reason.NOT_MAPPED
        assert e.address is not None
        assert SPARE <= e.address < SPARE + 512
    else:
        pytest.fail("no error came")
    assert [f.fd for f in found if f.pid == bent.pid] == [0, 2]
    assert len(found) == len(list(bent.image.files(0))) - 1


def test_any_garbage_ends_soon(bent: Bent) -> None:
    """Words of the structures replaced by pointers to each other, or noise: an answer or a typed error, and soon."""
    rng = random.Random(3)
    dentry, file = bent.dentry, bent.file
    things = [bent.table, file, dentry, dentry.d_parent, file.f_inode, file.f_inode.i_sb, file.f_path.mnt]
    places = [thing.value_() for thing in things] + [bent.place[0] - 32]
    began = time.perf_counter()
    for _ in range(400):
        bent.kernel.patches.clear()
        for _ in range(rng.randint(1, 8)):
            value = rng.choice([0, 1, 2**64 - 1, rng.getrandbits(64), *places])
            bent.kernel.put(rng.choice(places) + 8 * rng.randrange(20), value)
        try:
            bent.walk()
        except KvmError as e:
            assert e.reason in TYPED
    assert time.perf_counter() - began < 60
