"""Boots the guest, runs a script in it as root, and ends as it ended.

    boot.py --image DISK --kernel VMLINUZ --initrd INITRD [--architecture amd64|arm64] [--copy DIR_OR_FILE]...
            [--out DIR] [--timeout S] [--no-vmcoreinfo] SCRIPT

The disk is never written to. What --copy names lands in /job of the guest; SCRIPT runs there with bash, as a
service's child. Its output appears here, live; what it leaves in /job/out comes back in --out. The exit status is the
script's, 124 after the timeout, 125 if the guest did not come up or died. In the guest ``guest-host`` asks this side
for a dump of its memory, a copy of its swap area, or a write to its memory.
"""

from __future__ import annotations

import argparse
import secrets
import select
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket

from qemu import Qemu, connect

MIB = 1 << 20
TIMEOUT, DIED = 124, 125


@dataclass(frozen=True)
class Machine:
    """A kind of computer.

    :ivar console: where its kernel says what it does.
    :ivar line: the serial line that the job's output comes from, and the device that makes it.
    """

    program: str
    arguments: str
    console: str
    line: str
    device: tuple[str, str]


MACHINES = {
    # One thread: with more QEMU 7.2 now and then gets the kernel's patching of its code wrong.
    "amd64": Machine(
        "qemu-system-x86_64",
        "-machine q35 -cpu max,la57=off -accel tcg,thread=single",
        "ttyS0",
        "ttyS1",
        ("-serial", "chardev:s1"),
    ),
    "arm64": Machine(
        "qemu-system-aarch64",
        "-machine virt,gic-version=3 -cpu max,pauth-impdef=on -accel tcg,thread=multi",
        "ttyAMA0",
        "ttyS0",
        ("-device", "pci-serial,chardev=s1"),
    ),
}


def command(options: argparse.Namespace, work: Path, token: str) -> list[str]:
    """QEMU's command line."""
    machine = MACHINES[options.architecture]
    append = f"console={machine.console} panic=-1 root=/dev/vda rw systemd.show_status=false loglevel=4"
    append += f" guestrun.token={token} guestrun.line={machine.line}"
    disks = (
        (options.image, "snapshot=on,cache=unsafe"),
        (work / "swap.img", "cache=writeback"),
        (work / "job.tar", "cache=unsafe,readonly=on"),
        (work / "out.tar", "cache=writeback"),
    )
    argv = [machine.program, *machine.arguments.split(), "-m", "768M", "-smp", "2"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += [] if options.no_vmcoreinfo else ["-device", "vmcoreinfo"]
    argv += ["-chardev", f"file,id=s0,path={work}/console.log", "-serial", "chardev:s0"]
    argv += ["-chardev", f"socket,id=s1,path={work}/line.sock,server=on,wait=off", *machine.device]
    argv += ["-kernel", options.kernel, "-initrd", options.initrd, "-append", append]
    for number, (path, more) in enumerate(disks):
        argv += ["-drive", f"file={path},if=none,id=d{number},format=raw,{more}"]
        argv += ["-device", f"virtio-blk-pci,drive=d{number}"]
    return argv


def prepare(options: argparse.Namespace, work: Path) -> None:
    """Make the disks: the job, a swap area, room for the output."""
    job = work / "job.tar"
    with tarfile.open(job, "w") as tar:
        for path in map(Path, options.copy):
            tar.add(path, path.resolve().name)
        tar.add(options.script, "script")
    sizes = {job: job.stat().st_size // MIB + 2, work / "swap.img": 128, work / "out.tar": 512}
    for path, size in sizes.items():
        with path.open("ab") as disk:
            disk.truncate(size * MIB)
    subprocess.run(["mkswap", "-q", work / "swap.img"], check=True)


class Job:
    """One script in one guest."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._work = work
        self._out = Path(options.out) if options.out else work / "out"
        self._out.mkdir(exist_ok=True)
        self._deadline = time.monotonic() + options.timeout
        self._token = secrets.token_hex(8)
        self._command = command(options, work, self._token)
        self._status: int | None = None

    def run(self) -> int:
        """Boot, follow, power off."""
        with Qemu(self._command, self._work) as machine, connect(self._work / "line.sock", machine.process) as line:
            with suppress(OSError, EOFError):
                self._follow(machine, line)
            if self._status is not None:
                with suppress(subprocess.TimeoutExpired):
                    machine.process.wait(20)
        if self._status is not None:
            with tarfile.open(self._work / "out.tar") as tar:
                tar.extractall(self._out)
            return self._status
        console = (self._work / "console.log").read_bytes().decode("ascii", "ignore")
        late = time.monotonic() >= self._deadline
        sys.stderr.write(f"{console[-4000:]}\nboot: {'time is up' if late else 'the guest ended by itself'}\n")
        return TIMEOUT if late else DIED

    def _follow(self, machine: Qemu, line: socket) -> None:
        """Show the guest's output, and do what it asks for, until it says that the script ended."""
        mark = f"@@{self._token} ".encode()
        pending = b""
        while self._status is None and time.monotonic() < self._deadline:
            if not select.select([line], [], [], 1)[0]:
                if machine.process.poll() is not None:
                    return
                continue
            data = line.recv(65536)
            if not data:
                return
            *lines, pending = (pending + data.replace(b"\r", b"")).split(b"\n")
            for text in lines:
                shown, found, request = text.partition(mark)
                sys.stdout.buffer.write(shown + (b"" if found else b"\n"))
                if found and (answer := self._request(machine, request.decode("ascii", "replace").split())):
                    line.sendall(answer.encode() + b"\n")
            sys.stdout.buffer.flush()

    def _request(self, machine: Qemu, words: list[str]) -> str:
        """Do what the guest asks for, and answer; nothing is answered to what it only tells."""
        match words:
            case ["START", *_]:
                return ""
            case ["EXIT", status, *_]:
                self._status = int(status)
                return ""
        try:
            self._do(machine, words)
        except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as failure:
            return f"{type(failure).__name__}: {failure}"
        return "ok"

    def _do(self, machine: Qemu, words: list[str]) -> None:
        match words:
            case ["poke", address, data]:
                machine.poke(int(address, 16), bytes.fromhex(data))
                return
            case ["dump", name, form]:
                target = f"file:{self._out / Path(name).name}"
                wanted = {"paging": False, "format": form, "protocol": target}
                machine.command("stop")
                machine.command("dump-guest-memory", **wanted)
            case ["disk", name, "/dev/vdb"]:
                machine.command("stop")
                source = self._work / "swap.img"
                subprocess.run(["cp", "--sparse=always", source, self._out / Path(name).name], check=True)
            case _:
                raise ValueError(f"unknown request {words}")
        machine.command("cont")


def main() -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    for name in ("--image", "--kernel", "--initrd"):
        parser.add_argument(name, required=True)
    parser.add_argument("--architecture", choices=MACHINES, default="amd64")
    parser.add_argument("--copy", action="append", default=[])
    parser.add_argument("--out")
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("--no-vmcoreinfo", action="store_true", help="the guest has no device to tell its VMCOREINFO")
    parser.add_argument("script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="guest.") as directory:
        work = Path(directory)
        prepare(options, work)
        return Job(options, work).run()


if __name__ == "__main__":
    sys.exit(main())
