"""The policy: rules of subjects, images and verbs. The first rule that matches decides; none denies.

Pure: no file system, no clock. Names of users and groups are resolved once, when a rule is made.
"""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import re
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol

from kvmd.record import Record

VERBS = ("info", "symbols", "read", "processes", "arguments", "environment", "files", "log", "write", "upload")
"""What a subject can be allowed; ``*`` stands for all of them. ``info`` is needed to open at all."""


class Subject(Protocol):
    """What the policy asks of a peer: front.Peer has it."""

    @property
    def uid(self) -> int: ...  # noqa: D102
    @property
    def gid(self) -> int: ...  # noqa: D102
    @property
    def groups(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def cert(self) -> str | None: ...  # noqa: D102


class RuleError(ValueError):
    """A rule that means nothing; ``key`` is the rule's key that is wrong."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


Matcher = Callable[[Subject], bool]


def _number(word: str) -> int:
    if not word.isascii() or not word.isdigit():
        raise ValueError(f"{word!r} is no number")
    return int(word)


def _is_uid(uid: int) -> Matcher:
    # A peer with a certificate came over the network: its uid says nothing about it.
    return lambda subject: subject.cert is None and subject.uid == uid


def _is_gid(gid: int) -> Matcher:
    return lambda subject: subject.cert is None and (subject.gid == gid or gid in subject.groups)


def _user(name: str) -> Matcher:
    return _is_uid(pwd.getpwnam(name).pw_uid)


def _group(name: str) -> Matcher:
    return _is_gid(grp.getgrnam(name).gr_gid)


def _uid(word: str) -> Matcher:
    return _is_uid(_number(word))


def _gid(word: str) -> Matcher:
    return _is_gid(_number(word))


def _cert(name: str) -> Matcher:
    if not name:
        raise ValueError("cert: needs a name")
    return lambda subject: subject.cert == name


_SUBJECTS: dict[str, Callable[[str], Matcher]] = {
    "user": _user,
    "group": _group,
    "uid": _uid,
    "gid": _gid,
    "cert": _cert,
}


def _subject(word: str) -> Matcher:
    if word == "self":
        return _is_uid(os.geteuid())
    kind, colon, name = word.partition(":")
    if not colon or kind not in _SUBJECTS:
        kinds = ", ".join(f"{known}:..." for known in _SUBJECTS)
        raise RuleError("subjects", f"unknown subject {word!r}; there are {kinds}, self")
    try:
        return _SUBJECTS[kind](name)
    except KeyError:
        raise RuleError("subjects", f"{word!r}: no such {kind} on this host") from None
    except ValueError as wrong:
        raise RuleError("subjects", f"{word!r}: {wrong}") from None


def _image(word: str) -> Callable[[str], bool]:
    if word in ("live", "live:mem"):
        return lambda image: image == word
    kind, colon, glob = word.partition(":")
    if kind != "dump" or not colon or not glob:
        raise RuleError("images", f"unknown image {word!r}; there are live, live:mem, dump:GLOB")
    pattern = re.compile(fnmatch.translate(glob), re.DOTALL)
    return lambda image: image.startswith("dump:") and pattern.match(image[5:]) is not None


class Rule(Record):
    """One ``[[policy]]`` entry.

    :ivar subjects: ``user:NAME``, ``group:NAME``, ``uid:N``, ``gid:N``, ``cert:CN``, ``self`` (the daemon's own uid).
    :ivar images: ``live``, ``live:mem``, ``dump:GLOB`` (fnmatch on the whole path; ``*`` matches ``/`` too).
    :ivar verbs: of :data:`VERBS`, or ``*``.
    :ivar origin: where it stands, for messages: ``FILE:LINE``.
    """

    subjects: tuple[str, ...]
    images: tuple[str, ...]
    verbs: tuple[str, ...]
    origin: str = "built-in"

    @cached_property
    def _who(self) -> tuple[Matcher, ...]:
        return tuple(_subject(word) for word in self.subjects)

    @cached_property
    def _what(self) -> tuple[Callable[[str], bool], ...]:
        return tuple(_image(word) for word in self.images)

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`.

        :raises RuleError: it means nothing.
        """
        for key in ("subjects", "images", "verbs"):
            if not getattr(self, key):
                raise RuleError(key, f"{key} must not be empty")
        for verb in self.verbs:
            if verb != "*" and verb not in VERBS:
                raise RuleError("verbs", f"unknown verb {verb!r}; there are {', '.join(VERBS)}, *")
        _ = self._who, self._what

    def matches(self, subject: Subject, image: str, verb: str) -> bool:
        """Whether this rule speaks of this subject, image and verb."""
        return not self.lacks(subject, image, verb)

    def lacks(self, subject: Subject, image: str, verb: str) -> str:
        """The key that does not match; empty if all do."""
        if verb not in self.verbs and "*" not in self.verbs:
            return "verbs"
        if not any(match(image) for match in self._what):
            return "images"
        return "" if any(match(subject) for match in self._who) else "subjects"

    def words(self, subject: Subject, image: str, verb: str) -> tuple[str, str, str]:
        """The words of this rule, which matches, that do so: of subjects, images and verbs."""
        who = next(word for word, match in zip(self.subjects, self._who, strict=True) if match(subject))
        what = next(word for word, match in zip(self.images, self._what, strict=True) if match(image))
        return who, what, verb if verb in self.verbs else "*"


class Decision(NamedTuple):
    """Whether it may be, and the origin of the rule that says so (``default`` if none does)."""

    allowed: bool
    rule: str


_DENIED = Decision(False, "default")
_ROOT = Decision(True, "built-in: root")
_OWN = Decision(True, "built-in: own uid")


class Policy(Record):
    """All rules in order. Root, and for a daemon that isn't root's its own uid, need none."""

    rules: tuple[Rule, ...] = ()

    def decide(self, subject: Subject, image: str, verb: str) -> Decision:
        """Decide.

        :param image: ``live``, ``live:mem`` or ``dump:`` and the canonical path.
        :param verb: one of :data:`VERBS`.
        """
        if _is_uid(0)(subject):
            return _ROOT
        if _is_uid(os.geteuid())(subject):
            return _OWN
        for rule in self.rules:
            if rule.matches(subject, image, verb):
                return Decision(True, rule.origin)
        return _DENIED
