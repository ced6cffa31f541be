"""Paths of open files, to the byte what readlink(2) of /proc/PID/fd/N shows.

Source: Linux fs/d_path.c (d_path, prepend_path, simple_dname) and the d_dname functions of pipes, sockets, namespaces,
anonymous inodes, pidfds and DMA buffers. Seen from the root directory of process 1, as a reader outside any container.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drgn import TypeKind

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.tasks import Tasks

PATH_MAX = 4096  # with a NUL at its end
_MAX_NAME = 4096
_REMEMBERED = 1 << 12  # directories, whose paths take 16 MiB at most

Place = tuple[int, int]
"""A struct path: the addresses of its vfsmount and its dentry."""


class Paths:
    """Paths of one kernel. Keep one for a single listing: it remembers directories.

    :param root: the root directory, as :func:`init_root` finds it.
    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, root: Place) -> None:
        self._kernel = kernel
        self._read = kernel.memory.kernel
        self._root = root
        self._known: dict[Place, bytes] = {}
        prog = kernel.prog
        dentry = {
            "parent": ("d_parent",),
            "name": ("d_name.name",),
            "length": ("d_name.len",),
            "hashed": ("d_hash.pprev",),
            "inode": ("d_inode",),
            "op": ("d_op",),
            "data": ("d_fsdata",),
            "sb": ("d_sb",),
        }
        mount = {"parent": ("mnt_parent",), "point": ("mnt_mountpoint",), "root": ("mnt.mnt_root",)}
        with kernel.reading("paths"):
            self._mnt = prog.type("struct mount").member("mnt").offset
        self._dentry = Fields(prog, self._read, "struct dentry", dentry)
        self._mount = Fields(prog, self._read, "struct mount", mount)
        self._operations = Fields(prog, self._read, "struct dentry_operations", {"name": ("d_dname",)})
        self._inode = Fields(prog, self._read, "struct inode", {"ino": ("i_ino",), "private": ("i_private",)})
        self._makers = self._name_makers()

    def path(self, place: Place) -> bytes:
        """The path of an open file; empty where it is too long for readlink (ENAMETOOLONG).

        :raises KvmError: CORRUPT_DATA where parents or mounts run in a circle, or the fault of a page that holds them.
        """
        mnt, dentry = place
        entry: dict[str, Any] = self._dentry(dentry)
        root_of_mount = self._mount(mnt - self._mnt)["root"]
        alone = entry["parent"] == dentry
        if entry["op"] and not (alone and dentry == root_of_mount):
            maker: Any = self._operations(entry["op"])["name"]
            if maker:
                return self._makers.get(maker, self._unknown)(entry)
        path = self._walk(mnt, dentry)
        if not alone and not entry["hashed"]:
            path += b" (deleted)"
        return path if len(path) < PATH_MAX else b""

    def _walk(self, mnt: int, dentry: int) -> bytes:
        """Go up to the root; the path of the directory that was found first is remembered."""
        names: list[bytes] = []
        places: list[Place] = []
        seen: set[Place] = set()
        length, base = 0, b""
        while (mnt, dentry) != self._root and length < PATH_MAX:
            place = (mnt, dentry)
            if place in self._known:
                base = self._known[place]
                break
            if place in seen:
                raise error(Reason.CORRUPT_DATA, "a file's directories run in a circle", address=dentry)
            seen.add(place)
            mount: dict[str, Any] = self._mount(mnt - self._mnt)
            if dentry == mount["root"]:
                if mount["parent"] == mnt - self._mnt:  # the top of this tree of mounts
                    break
                mnt, dentry = mount["parent"] + self._mnt, mount["point"]
                continue
            entry: dict[str, Any] = self._dentry(dentry)
            if entry["parent"] == dentry:  # it was moved out of what is mounted: the kernel shows "/"
                names, places = [], []
                break
            names.append(self._name(entry))
            places.append(place)
            length += len(names[-1]) + 1
            dentry = entry["parent"]
        return self._joined(base, names, places)

    def _joined(self, base: bytes, names: list[bytes], places: list[Place]) -> bytes:
        path = base + b"".join(b"/" + name for name in reversed(names))
        if len(places) > 1 and len(path) < PATH_MAX:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[places[1]] = path[: -len(names[0]) - 1]
        return path or b"/"

    def _name(self, entry: dict[str, Any]) -> bytes:
        data = self._read(entry["name"], min(entry["length"], _MAX_NAME))
        return data.split(b"\0")[0]

    def _name_makers(self) -> dict[int, Callable[[dict[str, Any]], bytes]]:
        """The d_dname functions by their addresses."""
        makers: dict[str, Callable[[dict[str, Any]], bytes]] = {
            "pipefs_dname": lambda entry: self._numbered(b"pipe", entry),
            "sockfs_dname": lambda entry: self._numbered(b"socket", entry),
            "ns_dname": self._namespace,
            "anon_inodefs_dname": lambda entry: b"anon_inode:" + self._name(entry),
            "pidfs_dname": lambda entry: b"anon_inode:[pidfd]",
            "simple_dname": lambda entry: b"/" + self._name(entry) + b" (deleted)",
            "dmabuffs_dname": self._dma_buffer,
        }
        places = ((self._kernel.builtin(name), maker) for name, maker in makers.items())
        return {place.value: maker for place, maker in places if place}

    def _numbered(self, kind: bytes, entry: dict[str, Any]) -> bytes:
        number: Any = self._inode(entry["inode"])["ino"]
        return b"%s:[%d]" % (kind, number)

    def _unknown(self, entry: dict[str, Any]) -> bytes:
        """A file system that kvmd doesn't know: its name, in the form that most have."""
        with self._kernel.reading("a file system's name"):
            name = self._kernel.prog.read_c_string(self._type_name(entry["sb"]), max_size=64)
        return self._numbered(name, entry)

    def _type_name(self, sb: int) -> int:
        prog = self._kernel.prog
        kind = Fields(prog, self._read, "struct super_block", {"type": ("s_type",)})(sb)["type"]
        name = Fields(prog, self._read, "struct file_system_type", {"name": ("name",)})(int(kind or 0))["name"]
        return int(name or 0)

    def _namespace(self, entry: dict[str, Any]) -> bytes:
        prog = self._kernel.prog
        inode: dict[str, Any] = self._inode(entry["inode"])
        with self._kernel.reading("a namespace's name"):
            # Since 6.9 ns_common keeps a dentry, not a number, and the inode knows the namespace; before, the dentry's
            # own data are the operations.
            if prog.type("struct ns_common").member("stashed").type.kind is TypeKind.POINTER:
                common = Fields(prog, self._read, "struct ns_common", {"ops": ("ops",)})
                operations: Any = common(inode["private"])["ops"]
            else:
                operations = entry["data"]
            name = Fields(prog, self._read, "struct proc_ns_operations", {"name": ("name",)})(operations)["name"]
            text = prog.read_c_string(name, max_size=64)
        return b"%s:[%d]" % (text, inode["ino"])

    def _dma_buffer(self, entry: dict[str, Any]) -> bytes:
        prog = self._kernel.prog
        name = Fields(prog, self._read, "struct dma_buf", {"name": ("name",)})(entry["data"])["name"]
        with self._kernel.reading("a buffer's name"):
            text = prog.read_c_string(name, max_size=64) if name else b""
        return b"/%s:%s" % (self._name(entry), text)


def init_root(kernel: Kernel, tasks: Tasks) -> Place:
    """The root directory of process 1; (0, 0), which is no place, if it has none any more or it can't be read.

    Without it paths begin at the top of their own tree of mounts, which for most systems is the same.
    """
    prog, read = kernel.prog, kernel.memory.kernel
    task = Fields(prog, read, "struct task_struct", {"fs": ("fs",)})
    fs = Fields(prog, read, "struct fs_struct", {"mnt": ("root.mnt",), "dentry": ("root.dentry",)})
    try:
        place: dict[str, Any] = task(tasks.find(1))
        found: dict[str, Any] = fs(place["fs"])
    except KvmError:
        return 0, 0
    return found["mnt"], found["dentry"]
