"""Boots kernels of several ages, has each dumped, and tells what kvmd finds in the dump with no file beside it.

    python tests/guest/kernels.py boot CACHE [NAME...]          # dumps in CACHE/kernels, with truth and vmlinux
    python tests/guest/kernels.py compare DIR...    # into tests/data/kernels.json, for tests/kernel_page.py

``setup CACHE`` must have run. A directory of ``compare`` holds ``vmcore``, ``truth.json`` and ``kallsyms`` of the
guest, and ``vmlinux`` with DWARF of the same build: any kernel that was booted by other means can have one, too.
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
class Kernel:
    """A Debian kernel to boot.

    :ivar package: which, with ``-dbg`` in the same suite.
    :ivar device: whether QEMU has the device that takes VMCOREINFO into dumps.
    :ivar wipe: whether VMCOREINFO is taken out of the dump's memory, too.
    """

    suite: str
    package: str
    device: bool = True
    wipe: bool = False
    form: str = "elf"


_5_10, _6_1 = "linux-image-5.10.0-32-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"
KERNELS = {
    "5.10": Kernel("bullseye", _5_10),
    "5.10-no-device": Kernel("bullseye", _5_10, device=False, form="kdump-zlib"),
    "6.1": Kernel("bookworm", _6_1),
    "6.1-no-device": Kernel("bookworm", _6_1, device=False),
    "6.1-wiped": Kernel("bookworm", _6_1, device=False, wipe=True),
    "6.12": Kernel("trixie", "linux-image-6.12.117+deb13-cloud-amd64"),
    "6.12-wiped": Kernel("trixie", "linux-image-6.12.117+deb13-cloud-amd64", device=False, wipe=True),
}


def boot(cache: Path, name: str) -> None:
    """Make a directory of one kernel's dump."""
    kernel = KERNELS[name]
    place, out = cache / "kernels" / kernel.package, cache / "kernels" / name
    subprocess.run([HERE / "fetch_kernel", kernel.suite, kernel.package, place], check=True)
    initrd = place / "initrd.gz"
    if not initrd.exists():
        subprocess.run([HERE / "initramfs", place, HERE / "inside" / "init", initrd], check=True)
    out.mkdir(parents=True, exist_ok=True)
    job = out / "job.sh"
    job.write_text(f"exec python3 /job/record.py /job/out {kernel.form}\n")
    words: list[str | Path] = [sys.executable, HERE / "boot.py", "--image", cache / "disk.img", "--out", out]
    words += ["--kernel", next((place / "boot").glob("vmlinuz-*")), "--initrd", initrd]
    words += ["--copy", HERE / "inside" / "record.py", *([] if kernel.device else ["--no-vmcoreinfo"]), job]
    for _ in range(2):  # in an emulator a kernel panics while it boots once in a while
        if subprocess.run(words, check=False).returncode == 0:
            break
    if kernel.wipe:
        wipe(out / "vmcore")
    (out / "vmlinux").unlink(missing_ok=True)
    (out / "vmlinux").symlink_to(place / "vmlinux")


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
