"""The C-style face: kvm_read(3) and kvm_getprocs(3)."""

from __future__ import annotations

import ctypes
import errno
import threading

import pytest

from kvmd.errors import Reason, error
from libkvm import (
    KERN_PROC_ALL,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_TTY,
    KERN_PROC_UID,
    KVM_NO_FILES,
    kvm_close,
    kvm_geterr,
    kvm_getprocs,
    kvm_openfiles,
    kvm_read,
)
from unit.client.fake import BASE, MEMORY, MIB

END = BASE + len(MEMORY)
KVATOP = f"_kvm_kvatop({END:x})"


class TestRead:
    @pytest.mark.parametrize("size", [0, 1, 4096, MIB, 3 * MIB])
    def test_whole(self, kd, size):
        buf = bytearray(size)

        assert kvm_read(kd, BASE, buf) == size
        assert buf == MEMORY[:size]

    def test_nbytes(self, kd):
        buf = bytearray(10)

        assert kvm_read(kd, BASE + 1, buf, 4) == 4
        assert buf == MEMORY[1:5] + bytes(6)
        assert kvm_read(kd, BASE, buf, 11) == -1
        assert kvm_read(kd, BASE, buf, -1) == -1
        assert kvm_geterr(kd) == "kvm_read: Invalid argument"

    def test_any_buffer(self, kd):
        number = ctypes.c_uint32()

        assert kvm_read(kd, BASE + 1, number) == 4
        assert number.value == 0x04030201
        with pytest.raises(TypeError):
            kvm_read(kd, BASE, b"read-only")

    def test_addresses_wrap_as_u_long(self, kd):
        assert kvm_read(kd, BASE - 2**64, bytearray(1)) == 1

    @pytest.mark.parametrize("size", [200, 2 * MIB])
    def test_a_failed_translation_takes_all_back(self, kd, size):
        buf = bytearray(size)

        assert kvm_read(kd, END - 100, buf) == -1
        assert buf[:101] == MEMORY[-100:] + b"\0"
        assert kvm_geterr(kd) == KVATOP
        assert ctypes.get_errno() == errno.EFAULT

    def test_a_failed_translation_is_hard(self, loud, capsys):
        assert kvm_read(loud, END, bytearray(1)) == -1
        assert capsys.readouterr().err == f"prog: {KVATOP}\n"
        assert kvm_geterr(loud) == ""

    @pytest.mark.parametrize("size", [200, 2 * MIB])
    @pytest.mark.parametrize(
        ("reason", "text"),
        [(Reason.SHORT_FILE, "short read"), (Reason.CORRUPT_PAGE, "kvm_read: Input/output error")],
    )
    def test_a_file_that_fails_keeps_the_count(self, kd, fake, size, reason, text):
        fake.fault = error(reason, "why", address=END)

        assert kvm_read(kd, END - 100, bytearray(size)) == 100
        assert kvm_geterr(kd) == text
        assert kvm_read(kd, END, bytearray(size)) == 0

    def test_success_leaves_the_older_text(self, kd):
        assert kvm_read(kd, END, bytearray(1)) == -1
        assert kvm_read(kd, BASE, bytearray(1)) == 1
        assert kvm_geterr(kd) == KVATOP

    def test_on_the_running_kernel_a_bad_address_is_soft(self, live, capsys):
        assert kvm_read(live, END, bytearray(1)) == -1
        assert kvm_geterr(live) == "kvm_read: Bad address"
        assert capsys.readouterr().err == ""

    def test_on_the_running_kernel_a_short_read_is_a_count(self, live, capsys):
        assert kvm_read(live, END - 3, bytearray(9)) == 3
        assert capsys.readouterr().err == "prog: short read\n"

    def test_no_files(self, target):
        kd = kvm_openfiles(None, None, None, KVM_NO_FILES, None)

        assert kvm_read(kd, BASE, bytearray(1)) == -1
        assert kvm_geterr(kd) == "kvm_open called with KVM_NO_FILES, can't use kvm_read"
        kvm_close(kd)

    def test_none_closed_and_lost(self, kd, fake):
        assert kvm_read(None, BASE, bytearray(1)) == -1
        fake.open.clear()
        assert kvm_read(kd, BASE, bytearray(1)) == -1
        assert kvm_geterr(kd) == "Bad file descriptor"
        kvm_close(kd)
        assert kvm_read(kd, BASE, bytearray(1)) == -1

    def test_a_hostile_text_does_not_reach_the_terminal(self, loud, fake, capsys):
        fake.fail["ReadV"] = error(Reason.CORRUPT_DATA, "bad\x1b[2J")

        assert kvm_read(loud, BASE, bytearray(1)) == -1
        assert capsys.readouterr().err == "prog: bad\\x1b[2J\n"

    def test_threads_do_not_disturb_each_other(self, kd):
        wrong = []

        def work(offset: int) -> None:
            buf = bytearray(64)
            for turn in range(30):
                bad = turn % 3 == 0
                count = kvm_read(kd, END if bad else BASE + offset, buf)
                if count != (-1 if bad else 64) or (not bad and buf != MEMORY[offset : offset + 64]):
                    wrong.append(offset)
                if kvm_geterr(kd) not in {"", KVATOP}:
                    wrong.append(kvm_geterr(kd))

        threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert not wrong


class TestGetprocs:
    def test_all(self, kd):
        assert [process.pid for process in kvm_getprocs(kd, KERN_PROC_ALL, 0)] == [1, 2, 30]

    def test_every_operation_has_its_filter_on_the_wire(self, kd, fake):
        for op in range(KERN_PROC_ALL, KERN_PROC_RGID + 1):
            kvm_getprocs(kd, op, op * 10)

        sent = [(r.filter, r.argument) for name, r in fake.seen if name == "GetProcs"]
        assert sent == [(1, 0), *((op + 1, op * 10) for op in range(1, 9))]

    def test_filters(self, kd):
        assert [process.pid for process in kvm_getprocs(kd, KERN_PROC_PID, 2)] == [2]
        assert kvm_getprocs(kd, KERN_PROC_UID, 4711) == []
        assert kvm_getprocs(kd, KERN_PROC_TTY, -1) is not None

    def test_an_unknown_operation_is_einval(self, kd, loud, capsys):
        assert kvm_getprocs(kd, 9, 0) is None
        assert kvm_geterr(kd) == "kvm_getprocs: Invalid argument"
        assert ctypes.get_errno() == errno.EINVAL
        assert kvm_getprocs(loud, -1, 0) is None
        assert capsys.readouterr().err == "prog: kvm_getprocs: Invalid argument\n"

    def test_failure(self, kd, fake):
        fake.fail["GetProcs"] = error(Reason.CORRUPT_DATA, "a loop in the task list")

        assert kvm_getprocs(kd, KERN_PROC_ALL, 0) is None
        assert kvm_geterr(kd) == "a loop in the task list"
        assert kvm_getprocs(kd, KERN_PROC_PID, 2**70) is None
        assert kvm_getprocs(None, KERN_PROC_ALL, 0) is None
