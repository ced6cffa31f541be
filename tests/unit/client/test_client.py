"""The connection: opening, closing, deadlines, and what happens when the daemon is not there."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pathlib
import pickle
import socket
import threading
import time
import warnings

import pytest

import libkvm
from kvmd.errors import TABLE, Reason, error
from libkvm.names import open_request
from unit.client.fake import BASE, Fake, serving


def test_open_sends_the_names_and_the_mode(client, fake):
    with client.open("core", "exec", ["a", pathlib.Path("b")], write=True):
        request = fake.seen[0][1]

    assert (request.corefile, request.execfile, list(request.swapfiles)) == ("core", "exec", ["a", "b"])
    assert request.flags == os.O_RDWR


def test_open_without_names_asks_for_the_running_kernel(client, fake):
    with client.open() as kernel:
        request = fake.seen[0][1]

    assert not request.HasField("corefile")
    assert not request.HasField("execfile")
    assert repr(kernel) == "<libkvm.Kernel of the running kernel, read-only, closed>"


def test_relative_names_of_files_that_exist_here_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()

    near = open_request("here", "not-here", "here:/x:gone", 0, local=True)
    far = open_request("here", None, None, 0, local=False)

    assert near.corefile == str(tmp_path / "here")
    assert near.execfile == "not-here"
    assert list(near.swapfiles) == [str(tmp_path / "here"), "/x", "gone"]
    assert far.corefile == "here"


def test_negative_flags_are_a_c_int():
    assert open_request(None, None, None, -(2**31), local=True).flags == libkvm.KVM_NO_FILES


def test_a_name_that_is_not_text_is_an_error():
    with pytest.raises(libkvm.RequestError, match="not UTF-8"):
        open_request("\udcff", None, None, 0, local=True)


def test_a_failed_open_raises_by_reason(client):
    with pytest.raises(libkvm.SourceNotFoundError) as caught:
        client.open("/nonexistent")

    assert caught.value.reason is Reason.SOURCE_NOT_FOUND
    assert caught.value.metadata == {"path": "/nonexistent"}
    assert caught.value.text == "/nonexistent: No such file or directory"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_arrives_as_its_own_class(client, fake, reason):
    fake.fail["Open"] = error(reason, "why", address=BASE)

    with pytest.raises(TABLE[reason].kind) as caught:
        client.open()

    assert caught.value.reason is reason
    assert caught.value.message == "why"
    assert caught.value.address == BASE


def test_kernels_close_once(client, fake):
    kernel = client.open()
    kernel.close()
    kernel.close()

    assert [name for name, _ in fake.seen].count("Close") == 1
    assert not fake.open
    with pytest.raises(libkvm.DescriptorError, match="closed; open it again"):
        kernel.read(BASE, 1)


def test_closing_the_client_closes_its_kernels(target):
    client = libkvm.connect(target)
    kernel = client.open()
    client.close()
    client.close()

    assert client.closed
    assert kernel.closed
    kernel.close()
    with pytest.raises(libkvm.DescriptorError, match="closed; connect again"):
        kernel.read(BASE, 1)
    with pytest.raises(libkvm.DescriptorError, match="closed; connect again"):
        next(kernel.stream(BASE, 1))
    with pytest.raises(libkvm.DescriptorError, match="closed; connect again"):
        client.open()


def test_what_is_not_closed_warns(target):
    client = libkvm.connect(target)
    kernel = client.open()
    things = [kernel, client]
    del kernel, client
    with pytest.warns(ResourceWarning, match=r"Kernel of the running kernel was not closed"):
        things.pop(0)
    with pytest.warns(ResourceWarning, match=r"Client of unix:.* was not closed"):
        things.clear()


def test_a_kernel_keeps_its_connection(target):
    kernel = libkvm.connect(target).open()
    gc.collect()

    assert kernel.read(BASE, 1) == b"\0"
    kernel._session.close()


def test_nothing_here_can_be_pickled_or_copied(client, kernel):
    for thing in (client, kernel):
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match="can't be pickled"):
            copy.copy(thing)


def test_a_repr_tells_the_source_and_never_the_descriptor(client, kernel, target):
    assert repr(kernel) == "<libkvm.Kernel of /dumps/vmcore, read-only>"
    assert "secret" not in repr(kernel)
    assert repr(client) == f"<libkvm.Client of {target}>"
    with client.open(write=True) as other:
        assert "read-write" in repr(other)


def test_no_daemon_is_unreachable_and_says_where(tmp_path):
    target = f"unix:{tmp_path}/none"
    with libkvm.connect(target) as client, pytest.raises(libkvm.UnavailableError) as caught:
        client.open()

    assert caught.value.reason is Reason.UNREACHABLE
    assert target in caught.value.message
    assert "KVMD_TARGET" in caught.value.message


def test_a_dead_socket_is_unreachable(tmp_path):
    with serving(str(tmp_path / "s"), Fake()) as target, libkvm.connect(target) as client:
        kernel = client.open()
    with pytest.raises(libkvm.DescriptorError):
        kernel.read(BASE, 1)
    with libkvm.connect(target) as client, pytest.raises(libkvm.UnavailableError):
        client.open()


def test_a_deadline_passes(client, fake):
    fake.delay["Open"] = 0.5

    with pytest.raises(libkvm.DeadlineError) as caught:
        client.open(timeout=0.05)

    assert caught.value.reason is Reason.DEADLINE


def test_the_clients_deadline_is_the_default(target, fake):
    fake.delay["Read"] = 0.5
    with libkvm.connect(target, timeout=0.05) as client, client.open() as kernel:
        with pytest.raises(libkvm.DeadlineError):
            kernel.read(BASE, 1)
        assert kernel.read(BASE, 1, timeout=5) == b"\0"


def test_an_unknown_target_is_refused():
    with pytest.raises(libkvm.RequestError, match=r"not of the form unix:/path"):
        libkvm.connect("tcp:1")


def test_the_environment_names_the_default_target(monkeypatch):
    monkeypatch.setenv("KVMD_TARGET", "unix:/x/y")
    with libkvm.connect() as client:
        assert client.target == "unix:/x/y"
    monkeypatch.delenv("KVMD_TARGET")
    with libkvm.connect() as client:
        assert client.target == "unix:/run/kvmd/kvmd.sock"


def test_clients_do_not_share_a_connection(target, fake, tmp_path):
    with libkvm.connect(target) as one, libkvm.connect(target) as other:
        one.open().close()
        other.open().close()
        with open("/proc/net/unix") as table:
            connected = [line for line in table if line.rstrip().endswith(str(tmp_path / "s")) and " 03 " in line]

    assert len(connected) == 2


def test_threads_on_one_kernel_do_not_disturb_each_other(kernel, fake):
    wrong = []

    def reader(offset: int) -> None:
        got = {kernel.read(BASE + offset, 100) for _ in range(50)}
        if got != {fake.memory[offset : offset + 100]}:
            wrong.append(offset)

    threads = [threading.Thread(target=reader, args=(n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


@pytest.mark.parametrize("client", [libkvm.connect], indirect=True)  # no event loop outlives a fork
def test_a_forked_child_is_told_to_connect_anew(kernel):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            kernel.read(BASE, 1)
        except libkvm.DescriptorError as failure:
            os._exit(0 if "forked child" in failure.message else 2)
        os._exit(3)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert kernel.read(BASE, 1) == b"\0"


def test_no_files_wins_over_all_that_is_named(client, fake):
    with client.open("/x" * 5000, "\udcff", ["a"], write=True, no_files=True) as kernel:
        request = fake.seen[0][1]
        assert kernel.load_average() == (0.5, 0.25, 0.125)
        with pytest.raises(libkvm.UnsupportedError) as caught:
            kernel.read(BASE, 1)

    assert request.flags == libkvm.KVM_NO_FILES
    assert [field.name for field, _ in request.ListFields()] == ["flags"]
    assert caught.value.reason is Reason.NO_FILES
    assert repr(kernel) == "<libkvm.Kernel of no files, read-only, closed>"


def listening(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    made.listen()
    return made


def test_a_daemon_that_is_slow_to_answer_is_waited_for(target, tmp_path):
    """A front that is busy lets half a second pass before it relays anything."""
    front = listening(str(tmp_path / "front"))
    ends = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def relay() -> None:
        near, _ = front.accept()
        time.sleep(0.5)
        far = socket.socket(socket.AF_UNIX)
        far.connect(target.removeprefix("unix:"))
        ends.extend([near, far])
        back = threading.Thread(target=pump, args=(far, near))
        back.start()
        with contextlib.suppress(OSError):
            pump(near, far)
        back.join()

    thread = threading.Thread(target=relay)
    thread.start()
    with libkvm.connect(f"unix:{tmp_path}/front") as client, client.open() as kernel:
        assert kernel.read(BASE, 1) == b"\0"
    thread.join()
    for end in [front, *ends]:
        end.close()
