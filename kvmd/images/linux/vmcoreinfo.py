"""VMCOREINFO: the text that a kernel writes for those who read its dumps.

Source: Documentation/admin-guide/kdump/vmcoreinfo.rst. Lines are ``KEY=value``, ``SYMBOL(name)=hex``,
``OFFSET(struct.member)=decimal``, ``NUMBER(name)=decimal``, ``LENGTH`` and ``SIZE`` likewise.
"""

from __future__ import annotations

import re
from typing import NamedTuple

Release = tuple[int, int]
"""The two numbers that tell kernels apart: 6, 1."""


class VmcoreInfo(NamedTuple):
    """The text, and its lines as a mapping. A number that doesn't parse counts as absent."""

    text: bytes
    lines: dict[str, str]

    @classmethod
    def parse(cls, text: bytes) -> VmcoreInfo:
        """Split the text; undecodable bytes are replaced."""
        pairs = (line.partition("=") for line in text.decode("utf-8", "replace").splitlines())
        return cls(text, {key: value for key, separator, value in pairs if separator})

    def _int(self, key: str, base: int) -> int | None:
        try:
            return int(self.lines[key], base)
        except (KeyError, ValueError):
            return None

    def symbol(self, name: str) -> int | None:
        """The address of a SYMBOL() line."""
        value = self._int(f"SYMBOL({name})", 16)
        return value if value is not None and 0 <= value < 1 << 64 else None

    def symbols(self) -> dict[str, int]:
        """Every SYMBOL() line."""
        names = (key[7:-1] for key in self.lines if key.startswith("SYMBOL(") and key.endswith(")"))
        return {name: value for name in names if (value := self.symbol(name)) is not None}

    def number(self, name: str) -> int | None:
        """The value of a NUMBER() line; arm64's have addresses among them, with 0x."""
        return self._int(f"NUMBER({name})", 0)

    def hexadecimal(self, key: str) -> int | None:
        """The value of a line that has a hexadecimal number without a name around it."""
        return self._int(key, 16)

    def size(self, name: str) -> int | None:
        """The value of a SIZE() line."""
        return self._int(f"SIZE({name})", 10)

    def offset(self, name: str) -> int | None:
        """The value of an OFFSET() line."""
        return self._int(f"OFFSET({name})", 10)

    def length(self, name: str) -> int | None:
        """The value of a LENGTH() line."""
        return self._int(f"LENGTH({name})", 10)

    @property
    def page_size(self) -> int:
        """The size of a page in bytes; 4096 if it makes no sense."""
        size = self._int("PAGESIZE", 10)
        return size if size in (4096, 16384, 65536) else 4096

    @property
    def release(self) -> str:
        """uname -r."""
        return self.lines.get("OSRELEASE", "")

    @property
    def build_id(self) -> str:
        """The kernel's build id in hexadecimal digits; empty before Linux 5.13."""
        return self.lines.get("BUILD-ID", "").lower()

    @property
    def kaslr_offset(self) -> int | None:
        """How far KASLR moved the kernel."""
        return self.hexadecimal("KERNELOFFSET")


def release_of(text: str) -> Release:
    """The two numbers that a release begins with; (0, 0) if there are none."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
