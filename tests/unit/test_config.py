"""The configuration file: what it means, and what it says when it's wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.config import Config, ConfigError, load, parse

GOOD = """
# comment
[listen]
unix = "/run/x.sock"
mode = 0o660

[dumps]
directories = ["/var/crash", "/srv/dumps"]

[limits]
worker_timeout = 5
descriptors = 10

[audit]
file = "/var/log/kvmd.audit"

[[policy]]
subjects = ["uid:1000", "self"]
images = ["dump:/srv/*"]
verbs = ["info", "read"]

[[policy]]
subjects = ["uid:1001"]
images = ["live"]
verbs = ["*"]
"""


def test_every_section() -> None:
    config = parse(GOOD, "f")
    assert (config.listen.unix, config.listen.mode) == ("/run/x.sock", 0o660)
    assert config.dumps.directories == ("/var/crash", "/srv/dumps")
    assert (config.limits.worker_timeout, config.limits.descriptors) == (5, 10)
    assert config.audit.file == "/var/log/kvmd.audit"
    assert [rule.origin for rule in config.policy.rules] == ["f:17", "f:22"]


def test_empty_is_the_default() -> None:
    assert parse("", "f") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[listen]\nunix = 5\n", "f:2: listen.unix: must be a string"),
        ("\n[listen]\nport = 5\n", "f:3: listen.port: unknown key; [listen] has unix, mode"),
        (
            "[limit]\n",
            "f:1: limit: unknown section; there are listen, dumps, limits, audit, live, cache, log, metrics, policy",
        ),
        (
            "x = 1\n",
            "f:1: x: unknown section; there are listen, dumps, limits, audit, live, cache, log, metrics, policy",
        ),
        ("[limits]\ndescriptors = true\n", "f:2: limits.descriptors: must be an integer"),
        ("[limits]\n\ndescriptors = 0\n", "f:3: limits.descriptors: must be at least 1"),
        ("[dumps]\ndirectories = '/var'\n", "f:2: dumps.directories: must be a list of strings"),
        ("listen = 3\n", "f:1: listen: must be a table"),
        ("[policy]\n", "f:1: policy: write each rule as [[policy]]"),
        ("[[policy]]\nimages=['live']\nverbs=['info']\n", "f:1: policy: subjects must be a list of strings"),
        ("[[policy]]\nsubjects=['self']\nimages=['live']\nverbs=['fly']\n", "f:4: policy.verbs: unknown verb 'fly'"),
        (GOOD + "[[policy]]\nsubjects=['who']\nimages=['live']\nverbs=['*']\n", "f:27: policy.subjects: unknown"),
        (GOOD + "rights = 1\n", "f:26: policy.rights: unknown key; [[policy]] has subjects, images, verbs"),
        ("[listen\n", "f: Expected ']' at the end of a table declaration (at line 1, column 8)"),
    ],
)
def test_wrong_names_file_key_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        parse(text, "f")
    assert str(wrong.value).startswith(message)


@given(st.text())
def test_no_text_escapes_as_another_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text, "f"), Config)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(str(tmp_path / "none"))
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="latin"):
        load(str(tmp_path / "latin"))
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))
    (tmp_path / "good").write_text(GOOD)
    assert len(load(str(tmp_path / "good")).policy.rules) == 2
