"""Arguments and environments as /proc shows them.

Sources: proc_pid_cmdline(5), proc_pid_environ(5). The first is for everybody to read; the second takes the right to
ptrace(2) the process, which its own user has unless the process is one that changed its uid.
"""

from __future__ import annotations

from kvmd.errors import KvmError, Reason, error
from kvmd.images.procfs import rights, tree
from kvmd.v1 import process_pb2

MAX_BYTES = 2 << 20
_FILES = {
    process_pb2.STRINGS_KIND_ARGUMENTS: "cmdline",
    process_pb2.STRINGS_KIND_ENVIRONMENT: "environ",
}


def read(directory: int, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
    """Read at most ``limit`` bytes (0 = 2 MiB) of a process that has memory.

    :param directory: /proc/PID.
    :raises KvmError: BAD_ARGUMENT for an unknown kind; POLICY_DENIED for an environment that isn't the client's.
    :raises OSError: the process is gone.
    """
    if kind not in _FILES:
        raise error(Reason.BAD_ARGUMENT, f"{kind} is no kind of strings")
    name, most = _FILES[kind], min(limit or MAX_BYTES, MAX_BYTES)
    try:
        data = tree.read(directory, name, most)
    except PermissionError:
        data = _privileged(directory, pid, name, most)
    return process_pb2.Strings(values=_split(data))


def _privileged(directory: int, pid: int, name: str, most: int) -> bytes:
    try:
        with rights.raised():
            return tree.read(directory, name, most)
    except PermissionError:
        raise _refused(pid, name) from None


def _refused(pid: int, name: str) -> KvmError:
    """AccessError's reason, since it is the caller who may not, and the policy that can let it."""
    path = f"/proc/{pid}/{name}"
    message = f"{path}: only its own user may read it; the policy's verb `environment` on the image `live` lifts that"
    return error(Reason.POLICY_DENIED, message, path=path, pid=pid, image="live", verb="environment", rule="default")


def _split(data: bytes) -> list[bytes]:
    """Split at NULs; a last string that was cut off is kept."""
    values = data.split(b"\0")
    return values[:-1] if values[-1] == b"" else values
