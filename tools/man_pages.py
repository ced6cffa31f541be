"""Puts the manual pages of docs/man into the wheel, as share/man/manN/NAME.N in man(7)'s language.

A build hook of hatchling. The pages use a small part of Markdown: headings of three levels, paragraphs, blocks that
four spaces indent, lists of terms (a line, then ``: text``), and `literals`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        for source in sorted(Path(self.root, "docs", "man").glob("*.md")):
            name, section = source.stem.rsplit(".", 1)
            text = source.read_text("utf-8")
            self.page(build_data, name, section, render(name, section, text))
            for other in names(text) - {name}:
                self.page(build_data, other, section, f".so man{section}/{source.stem}\n")

    def page(self, build_data: dict[str, Any], name: str, section: str, text: str) -> None:
        target = Path(self.folder.name, f"{name}.{section}")
        if not target.exists():  # kvm_read_zpcpu has two homes: the first
            target.write_text(text, "utf-8")
            build_data["shared_data"][str(target)] = f"share/man/man{section}/{target.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()


def names(text: str) -> set[str]:
    """What the section NAME names."""
    line = text.partition("## NAME\n\n")[2].partition(" - ")[0]
    return set(re.findall(r"\w+", line))


def render(name: str, section: str, text: str) -> str:
    """Render a page."""
    lines = [f'.TH "{name}" "{section}"']
    for block in re.split(r"\n{2,}", text.strip()):
        first, _, rest = block.partition("\n")
        if first.startswith("# "):
            continue
        if first.startswith("## "):
            lines.append(f".SH {first[3:]}")
        elif first.startswith("### "):
            lines.append(f".SS {first[4:]}")
        elif first.startswith("    "):
            lines += [".PP", ".nf", *(escape(line[4:]) for line in block.split("\n")), ".fi"]
        elif rest.startswith(": "):
            lines += [".TP", inline(first), *(inline(line.strip()) for line in rest[2:].split("\n"))]
        else:
            lines += [".PP", *(inline(line.strip()) for line in block.split("\n"))]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def inline(text: str) -> str:
    pieces = re.split(r"`([^`]+)`", text)
    return "".join(f"\\fB{escape(piece)}\\fR" if index % 2 else escape(piece) for index, piece in enumerate(pieces))
