"""Boots kernels of several ages, has each dumped, and tells what kvmd finds in the dump with no file beside it.

    python tests/guest/kernels.py boot CACHE [NAME...]          # dumps in CACHE/kernels, with truth and vmlinux
    python tests/guest/kernels.py compare DIR...    # into tests/data/kernels.json, for tests/kernel_page.py

``setup CACHE`` must have run; arm64's kernel needs qemu-system-arm, too. Kernels that are no package of Debian's are
built (``build_kernel``): of 5.15 and 6.1, whose sources you have unpacked as CACHE/linux-5.15 and CACHE/linux-6.1
(https://cdn.kernel.org/pub/linux/kernel). A directory of ``compare`` holds ``vmcore``, ``truth.json`` and ``kallsyms``
of the guest, and ``vmlinux`` with DWARF of the same build: any kernel that was booted by other means can have one, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
RESULTS = HERE.parent / "data" / "kernels.json"


@dataclass(frozen=True)
class Debian:
    """A kernel of Debian's.

    :ivar package: which, with ``-dbg`` in the same suite.
    """

    suite: str
    package: str
    architecture: str = "amd64"

    def make(self, cache: Path) -> Path:
        """Fetch it, and give its directory."""
        place = cache / "kernels" / self.package
        subprocess.run([HERE / "fetch_kernel", self.architecture, self.suite, self.package, place], check=True)
        return place


@dataclass(frozen=True)
class Built:
    """A kernel built of CACHE/linux-VERSION, with options of its own, which ``kind`` names."""

    version: str
    kind: str = "all"
    options: str = ""
    architecture: str = "amd64"

    def make(self, cache: Path) -> Path:
        """Build it, and give its directory."""
        place, source = cache / "kernels" / f"built-{self.version}-{self.kind}", cache / f"linux-{self.version}"
        subprocess.run([HERE / "build_kernel", source, place, *self.options.split()], check=True)
        return place


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot.

    :ivar device: whether QEMU has the device that takes VMCOREINFO into dumps.
    :ivar wipe: whether VMCOREINFO is taken out of the dump's memory, too.
    """

    origin: Debian | Built
    device: bool = True
    wipe: bool = False
    form: str = "elf"


_5_10 = Debian("bullseye", "linux-image-5.10.0-32-cloud-amd64")
_6_1 = Debian("bookworm", "linux-image-6.1.0-56-cloud-amd64")
_6_1_ARM64 = Debian("bookworm", "linux-image-6.1.0-56-cloud-arm64", "arm64")
_6_12 = Debian("trixie", "linux-image-6.12.117+deb13-cloud-amd64")
_6_12_16K = Debian("trixie", "linux-image-6.12.117+deb13-arm64-16k", "arm64")
_7_2 = Debian("sid", "linux-image-7.2.13+deb14-cloud-amd64")
_NO_VMCOREINFO = "KEXEC=n KEXEC_FILE=n KEXEC_CORE=n CRASH_CORE=n CRASH_DUMP=n PROC_VMCORE=n PROC_KCORE=n"
KERNELS = {
    "5.10": Kernel(_5_10),
    "5.10-no-device": Kernel(_5_10, device=False, form="kdump-zlib"),
    "5.15": Kernel(Built("5.15")),
    "5.15-no-vmcoreinfo": Kernel(Built("5.15", "no-vmcoreinfo", _NO_VMCOREINFO)),
    "6.1": Kernel(_6_1),
    "6.1-arm64": Kernel(_6_1_ARM64),
    "6.1-arm64-no-device": Kernel(_6_1_ARM64, device=False),
    "6.1-arm64-wiped": Kernel(_6_1_ARM64, device=False, wipe=True),
    "6.1-no-device": Kernel(_6_1, device=False),
    "6.1-no-kallsyms-all": Kernel(Built("6.1", "no-kallsyms-all", "KALLSYMS_ALL=n")),
    "6.1-no-kallsyms-all-wiped": Kernel(Built("6.1", "no-kallsyms-all", "KALLSYMS_ALL=n"), device=False, wipe=True),
    "6.1-wiped": Kernel(_6_1, device=False, wipe=True),
    "6.12": Kernel(_6_12),
    "6.12-arm64-16k": Kernel(_6_12_16K),
    "6.12-wiped": Kernel(_6_12, device=False, wipe=True),
    "7.2": Kernel(_7_2),
    "7.2-wiped": Kernel(_7_2, device=False, wipe=True),
}


def boot(cache: Path, name: str) -> None:
    """Make a directory of one kernel's dump."""
    kernel = KERNELS[name]
    place, out = kernel.origin.make(cache), cache / "kernels" / name
    initrd = place / "initrd.gz"
    if not initrd.exists():
        subprocess.run([HERE / "initramfs", place, HERE / "inside" / "init", initrd], check=True)
    out.mkdir(parents=True, exist_ok=True)
    job = out / "job.sh"
    job.write_text(f"exec python3 /job/record.py /job/out {kernel.form}\n")
    words: list[str | Path] = [sys.executable, HERE / "boot.py", "--image", disk(cache, kernel.origin.architecture)]
    words += ["--out", out, "--architecture", kernel.origin.architecture]
    words += ["--kernel", next((place / "boot").glob("vmlinuz-*")), "--initrd", initrd]
    words += ["--copy", HERE / "inside" / "record.py", *([] if kernel.device else ["--no-vmcoreinfo"]), job]
    for _ in range(2):  # in an emulator a kernel panics while it boots once in a while
        if subprocess.run(words, check=False).returncode == 0:
            break
    if kernel.wipe:
        wipe(out / "vmcore")
    (out / "vmlinux").unlink(missing_ok=True)
    (out / "vmlinux").symlink_to(place / "vmlinux")


def disk(cache: Path, architecture: str) -> Path:
    """Give the system to boot: ``setup`` made one, of another architecture it is made here."""
    if architecture == "amd64":
        return cache / "disk.img"
    image = cache / f"disk-{architecture}.img"
    if not image.exists():
        subprocess.run([HERE / "rootfs", image, HERE / "inside", architecture], check=True)
    return image


def wipe(path: Path) -> None:
    """Take every VMCOREINFO text out of a file."""
    head = b"OSRELEASE="
    with path.open("r+b") as file:
        at = 0
        while data := os.pread(file.fileno(), 1 << 20, at):
            place = data.find(head)
            while place >= 0:
                os.pwrite(file.fileno(), bytes(len(head)), at + place)
                place = data.find(head, place + 1)
            at += len(data) - len(head) + 1 if len(data) > len(head) else len(data)


def compare(directories: list[Path]) -> None:
    """Put what kvmd finds in each of some dumps into RESULTS."""
    from dump_truth import of_dump

    from kernel_page import WHOLE_CHECKS, cells

    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for directory in directories:
        found[directory.name] = cells(of_dump(directory), WHOLE_CHECKS)
        sys.stdout.write(f"{directory.name}: {found[directory.name]}\n")
    RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


def main() -> None:
    """Boot, or compare."""
    how, *names = sys.argv[1:]
    if how == "boot":
        for name in names[1:] or KERNELS:
            boot(Path(names[0]), name)
    else:
        compare([Path(name) for name in names])


if __name__ == "__main__":
    main()
