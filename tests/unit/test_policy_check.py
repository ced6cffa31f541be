"""What ``kvmctl policy check`` says is what the daemon decides, and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.access.policy import VERBS, Policy, Rule
from kvmd.front.peer import Certificate, Peer
from kvmd.policy_check import explain, image_name, subject

CONFIG = """\
[[policy]]
subjects = ["uid:54321", "cert:alice"]
images = ["dump:/var/crash/*"]
verbs = ["info", "read"]

[[policy]]
subjects = ["cert:alice"]
images = ["live", "dump:/srv/*"]
verbs = ["*"]
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "kvmd.toml"
    path.write_text(CONFIG)
    return str(path)


def check(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "libkvm", "policy", "check", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_line_that_allows(config: str) -> None:
    done = check("--config", config, "--as", "cert:alice", "--verb", "log", "live")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{config}:1: passed over: its verbs do not match",
        f"{config}:6: allows cert:alice to log live: cert:alice, live, *",
    ]


def test_the_first_that_matches_decides(config: str) -> None:
    done = check("--config", config, "--as", "cert:alice", "--verb", "read", "/var/crash/1")
    assert (
        done.stdout == f"{config}:1: allows cert:alice to read dump:/var/crash/1: cert:alice, dump:/var/crash/*, read\n"
    )


def test_the_default_denies_and_says_what_was_passed_over(config: str) -> None:
    done = check("--config", config, "--as", "uid:54321", "--verb", "read", "dump:/srv/1")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{config}:1: passed over: its images do not match",
        f"{config}:6: passed over: its subjects do not match",
    ]
    message = f"no rule of {config} allows uid:54321 to read dump:/srv/1, and the default is no"
    assert done.stderr == f"kvmctl: denied: {message}\n"


def test_root_needs_no_rule(config: str) -> None:
    done = check("--config", config, "--as", "root", "--verb", "write", "/dev/mem")
    assert done.stdout == "built-in: root: allows uid:0 to write live:mem\n"


def test_json(config: str) -> None:
    done = check("--json", "--config", config, "--as", "cert:bob", "--verb", "info", "/proc/kcore")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["allowed"], answer["rule"], answer["image"]) == (False, "default", "live")
    assert [each["lacks"] for each in answer["passed_over"]] == ["images", "subjects"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--as", "no-such-user-here", "--verb", "read", "live"), "no such user"),
        (("--as", "uid:x", "--verb", "read", "live"), "not a number"),
        (("--verb", "fly", "live"), "invalid choice: 'fly'"),
        (("--verb", "read", "vmcore"), "not an image"),
        (("--config", "/none", "--verb", "read", "live"), "/none: No such file"),
    ],
)
def test_what_can_not_be_asked(config: str, words: tuple[str, ...], match: str) -> None:
    done = check("--config", config, *words)
    assert done.returncode == 1
    assert match in done.stderr
    assert done.stderr.startswith("kvmctl: ")
    assert done.stderr.count("\n") == 1


def test_a_wrong_configuration_names_its_line(config: str) -> None:
    Path(config).write_text(CONFIG + "verb = 1\n")
    done = check("--config", config, "--verb", "read", "live")
    assert f"{config}:10: policy.verb: unknown key" in done.stderr


def test_subjects() -> None:
    assert subject("cert:alice").identity == "cert:alice"
    assert subject("uid:54321") == Peer(54321, 65534, 0)
    assert subject("root").uid == subject("user:root").uid == subject("uid:0").uid == 0
    own = subject(None)
    assert (own.uid, own.groups) == (os.geteuid(), tuple(os.getgroups()))


def test_a_user_has_the_groups_of_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 4100])
    rule = Rule(("gid:4100",), ("live",), ("info",), "f:1")
    peer = subject("nobody")
    assert explain(Policy((rule,)), peer, "live", "info")["because"] == ("gid:4100", "live", "info")


def test_images() -> None:
    assert image_name("/x") == image_name("dump:/x") == "dump:/x"
    assert [image_name(word) for word in ("live", "live:mem", "/proc/kcore", "/dev/mem")] == [
        "live",
        "live:mem",
        "live",
        "live:mem",
    ]


WORDS = {
    "subjects": ["uid:5", "uid:6", "gid:7", "cert:a", "cert:b"],
    "images": ["live", "live:mem", "dump:/a/*", "dump:*"],
    "verbs": ["info", "read", "*"],
}
RULES = st.lists(st.tuples(*(st.lists(st.sampled_from(words), min_size=1, max_size=3) for words in WORDS.values())))
PEERS = [Peer(5, 7, 1), Peer(6, 6, 1), *(Peer(5, 5, 0, certificate=Certificate(name, 1, 0, "")) for name in "ab")]


@given(
    RULES, st.sampled_from(PEERS), st.sampled_from(["live", "live:mem", "dump:/a/b", "dump:/c"]), st.sampled_from(VERBS)
)
def test_it_says_what_the_policy_decides(rules, peer, image, verb) -> None:
    policy = Policy(tuple(Rule(*map(tuple, words), origin=f"f:{line}") for line, words in enumerate(rules)))
    answer = explain(policy, peer, image, verb)
    decision = policy.decide(peer, image, verb)
    assert (answer["allowed"], answer["rule"]) == (decision.allowed, decision.rule)
    passed = [each["rule"] for each in answer["passed_over"]]
    matching = [rule.origin for rule in policy.rules if rule.matches(peer, image, verb)]
    assert passed == [f"f:{line}" for line in range(len(passed))]
    assert not set(passed) & set(matching)
    assert decision.rule == (matching[0] if matching else "default")
