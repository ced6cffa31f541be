"""Says what the policy of a configuration decides, and why: ``kvmctl policy check`` runs this.

    python -m kvmd.policy_check [--config FILE] [--as SUBJECT] --verb VERB IMAGE

It prints one JSON document. The groups of a named user are those that a login would give; of a client that is
connected the daemon asks the kernel.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pwd
import sys
from collections.abc import Sequence

from kvmd.access.policy import VERBS, Policy
from kvmd.config import DEFAULT_PATH, ConfigError, load
from kvmd.front.peer import NOBODY, Certificate, Peer

_ALIASES = {"/proc/kcore": "live", "/dev/mem": "live:mem"}


def subject(word: str | None) -> Peer:
    """Make the client that ``--as`` means: USER, user:USER, uid:N, cert:NAME; None: who asks.

    :raises ValueError: there is no such user.
    """
    if word is None:
        return Peer(os.geteuid(), os.getegid(), 0, tuple(os.getgroups()))
    kind, colon, name = word.partition(":")
    if kind == "cert" and colon and name:
        return Peer(NOBODY, NOBODY, 0, certificate=Certificate(name, 0, math.inf, ""))
    try:
        if kind == "uid" and colon:
            if not name.isascii() or not name.isdigit():
                raise ValueError(f"{word!r}: not a number")
            entry = pwd.getpwuid(int(name))
        else:
            entry = pwd.getpwnam(name if colon and kind == "user" else word)
    except KeyError:
        if kind == "uid":
            return Peer(int(name), NOBODY, 0)
        raise ValueError(f"{word!r}: no such user; USER, uid:N and cert:NAME are understood") from None
    return Peer(entry.pw_uid, entry.pw_gid, 0, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def image_name(word: str) -> str:
    """The policy's name of an image: a file's name stands for the dump in it.

    :raises ValueError: it is neither a name that the policy has nor an absolute path.
    """
    word = _ALIASES.get(word, word)
    if word in ("live", "live:mem"):
        return word
    path = word.removeprefix("dump:")
    if not os.path.isabs(path):
        raise ValueError(f"{word!r}: not an image; there are live, live:mem, and a dump's absolute path")
    return f"dump:{path}"


def explain(policy: Policy, peer: Peer, image: str, verb: str) -> dict[str, object]:
    """What is decided, by which rule, and what kept the rules before it from deciding."""
    decision = policy.decide(peer, image, verb)
    passed: list[dict[str, str]] = []
    because: tuple[str, ...] = ()
    for rule in policy.rules if not decision.rule.startswith("built-in") else ():
        lacks = rule.lacks(peer, image, verb)
        if not lacks:
            because = rule.words(peer, image, verb)
            break
        passed.append({"rule": rule.origin, "lacks": lacks})
    return {
        "allowed": decision.allowed, "rule": decision.rule, "because": because, "subject": peer.identity,
        "groups": sorted({peer.gid, *peer.groups} if peer.cert is None else ()), "image": image, "verb": verb,
        "passed_over": passed,
    }  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Run it; 0 whatever the decision, 2 for wrong usage or configuration."""
    parser = argparse.ArgumentParser(prog="kvmd.policy_check")
    parser.add_argument("--config")
    parser.add_argument("--as", dest="subject")
    parser.add_argument("--verb", required=True, choices=VERBS)
    parser.add_argument("image")
    options = parser.parse_args(words)
    try:
        policy = load(options.config).policy
        answer = explain(policy, subject(options.subject), image_name(options.image), options.verb)
    except (ConfigError, ValueError) as wrong:
        print(wrong, file=sys.stderr)
        return 2
    print(json.dumps(answer | {"config": options.config or DEFAULT_PATH}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
