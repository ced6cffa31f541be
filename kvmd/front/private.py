"""The directory of grpc's private socket, in which nobody else can put or reach anything."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from kvmd.front.lock import PRIVATE_NAME, PRIVATE_SUFFIX, ListenError, check_path, make_parent


@contextlib.contextmanager
def private_directory(path: str) -> Iterator[str]:
    """Make ``PATH.private``, 0700 and ours, for grpc's socket; emptied of stale sockets, removed at the end.

    :param path: the public socket's path; its lock must be held.
    :return: the path for grpc's private socket, within the directory.
    :raises ListenError: something else stands in its place, or it can't be made.
    """
    check_path(path)
    make_parent(path)
    directory = path + PRIVATE_SUFFIX
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        status = os.lstat(directory)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ListenError(f"{directory} is not a directory of ours: remove it")
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.chmod(directory, 0o700)
        _empty(directory)
    except OSError as failure:
        raise ListenError(f"can't make {directory}: {failure.strerror}") from failure
    try:
        yield f"{directory}/{PRIVATE_NAME}"
    finally:
        with contextlib.suppress(OSError, ListenError):
            _empty(directory)
            os.rmdir(directory)


def _empty(directory: str) -> None:
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ListenError(f"{path} is not a socket: remove it")
        os.unlink(path)
