"""Settings: the TOML file of kvmd.toml(5) and the command line, validated to the last key.

Every section is a :class:`~kvmd.record.Record`; its names are the section's keys, its defaults the defaults. An
unknown key, a wrong type, an unknown subject or verb is a :class:`ConfigError` naming file, key and line.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kvmd.access.policy import Policy, Rule, RuleError
from kvmd.front.certificates import TlsFiles
from kvmd.record import Record

DEFAULT_PATH = "/etc/kvmd/kvmd.toml"
DEFAULT_SOCKET = "/run/kvmd/kvmd.sock"

_MOST_PAGES = 2 << 30  # what a worker's address space has room for, beside its own memory and the dump

Kind = TypeVar("Kind", bound=Record)


class ConfigError(Exception):
    """The configuration can't be used; the message names file, key and line."""


class Listen(Record):
    """``[listen]``: where clients connect."""

    unix: str = DEFAULT_SOCKET
    # Who may connect at all; what they may do is the policy's business. None: 0666 for root's daemon, else 0600.
    mode: int | None = None
    # The admin service's own socket, 0600. None: beside ``unix``, as /run/kvmd/kvmd-admin.sock; empty: no such service.
    admin: str | None = None
    # Address and port for clients of other hosts, who must show a certificate; empty: none.
    tcp: str = ""
    # What the daemon shows them, and by what it knows them; PEM files.
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_client_crl: str = ""

    @property
    def admin_path(self) -> str:
        """Where the admin service listens; empty: nowhere."""
        return os.path.splitext(self.unix)[0] + "-admin.sock" if self.admin is None else self.admin

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        if self.mode is not None and not 0 <= self.mode <= 0o777:
            raise ValueError("mode: must be permission bits, 0 to 0o777")
        if self.tcp:
            _ = self.tcp_address
        names = ("tls_cert", "tls_key", "tls_client_ca")
        given = [name for name in names if getattr(self, name)]
        for name in names:
            if name not in given and (given or self.tcp or self.tls_client_crl):
                raise ValueError(f"{name}: is missing: there is no TCP without TLS and certificates of clients")
        for name in (*given, *(["tls_client_crl"] if self.tls_client_crl else [])):
            if not os.path.isabs(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not an absolute path")

    @property
    def tcp_address(self) -> tuple[str, int]:
        """Numeric host and port of :attr:`tcp`."""
        from ipaddress import ip_address  # noqa: PLC0415 - most listen to a Unix socket alone

        host, _, port = self.tcp.rpartition(":")
        try:
            found = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
            if (":" in host) != host.startswith("[") or not port.isascii() or not port.isdigit() or int(port) > 65535:
                raise ValueError
        except ValueError:
            raise ValueError(f"tcp: {self.tcp!r} is not ADDRESS:PORT, as 0.0.0.0:7443 or [::]:7443 are") from None
        return str(found), int(port)

    @property
    def tls(self) -> TlsFiles | None:
        """The files of TLS, if there are any."""
        if not self.tls_cert:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca, self.tls_client_crl)


class Dumps(Record):
    """``[dumps]``: where files that a client names may lie."""

    directories: tuple[str, ...] = ("/var/crash",)
    # Where an execfile may lie besides the dump directories.
    kernels: tuple[str, ...] = ("/boot", "/usr/lib/debug")

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        for name in self.names():
            for path in getattr(self, name):
                if not os.path.isabs(path):
                    raise ValueError(f"{name}: {path!r} is not an absolute path")


class Limits(Record):
    """``[limits]``: how much anybody may use. Times in seconds, sizes in bytes."""

    connections: int = 1024
    connections_per_uid: int = 64
    descriptors: int = 4096
    descriptors_per_uid: int = 256
    workers: int = 32
    workers_per_uid: int = 16
    concurrent_calls: int = 1024
    calls_per_uid: int = 128
    # Those of them that answer with a stream.
    streams: int = 512
    streams_per_uid: int = 64
    # Descriptors that are read directly, each with a window of 2 MiB.
    direct: int = 1024
    direct_per_uid: int = 64
    # Of answers that their clients have not taken yet.
    inflight_bytes: int = 1 << 30
    inflight_bytes_per_uid: int = 256 << 20
    calls_per_second: int = 20000
    calls_per_second_per_uid: int = 5000
    # What clients send. Who sends faster is not refused, but waits.
    received_bytes_per_second_per_uid: int = 2 << 20
    # A worker's address space beyond what it holds before it opens the image.
    worker_memory: int = 4 << 30
    # Its processor time, in all its life.
    worker_cpu: int = 3600
    # How many processes it has beside its own, to unpack pages of a dump, each with 64 MiB of its memory: of two
    # processors it has one, and its client the other.
    worker_helpers: int = max(min((os.cpu_count() or 1) - 2, 3), 0)
    # What the pages of a dump that are kept for direct reads may take, for each worker; 0: none are kept.
    page_cache: int = 256 << 20
    # The longest a worker may take for one step of a call before it is killed.
    worker_timeout: float = 30.0
    # How long a worker stays after its last descriptor was closed.
    worker_linger: float = 10.0
    # How long the descriptors of a client of another host outlive its connection, for it to come back.
    lease: float = 60.0
    # Clients of other hosts at once that have not shown a certificate yet, and how long each may take.
    handshakes: int = 64
    handshake_timeout: float = 10.0
    # The longest a unary call, and a stream, may take if the client sets no shorter deadline.
    call_deadline: float = 60.0
    stream_deadline: float = 3600.0
    # How long a client may leave an answer unread, or its greeting unsent, before its connection is cut.
    stall: float = 30.0

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        for name in self.names():
            least = 0 if name in ("worker_linger", "lease", "page_cache", "worker_helpers") else 1
            if not least <= getattr(self, name) < math.inf:  # which nan isn't, either
                raise ValueError(f"{name}: must be at least {least} and finite")
        if self.page_cache > _MOST_PAGES:
            raise ValueError(f"page_cache: must be at most {_MOST_PAGES}")


class AuditSettings(Record):
    """``[audit]``: where the record of who did what goes."""

    # A file to append JSON lines to. One that has been renamed is left, and a new one begun.
    file: str = ""
    # Records as journal entries with fields of their own. None: if standard error is the journal.
    journal: bool | None = None
    # What can't be recorded is not done: opens and writes.
    required: bool = True
    # Reads are recorded once a descriptor has given out so many bytes, and when it is closed.
    read_bytes: int = 64 << 20

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        if self.file and not os.path.isabs(self.file):
            raise ValueError(f"file: {self.file!r} is not an absolute path")
        if self.read_bytes < 1:
            raise ValueError("read_bytes: must be at least 1")


class Live(Record):
    """``[live]``: the running kernel."""

    # Whether its memory may be written, by those whom a rule gives ``write``.
    writes: bool = False


class CacheSettings(Record):
    """``[cache]``: what is found out about a kernel's build is kept for its next dump."""

    # A directory of the daemon's alone. None: the one that systemd gives the service; empty: nothing is kept.
    directory: str | None = None
    # What it may take in all; an index is 1 to 4 MiB.
    bytes: int = 256 << 20

    @property
    def path(self) -> str:
        """Where it is; empty: nowhere."""
        given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
        return given if self.directory is None else self.directory

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        if self.directory and not os.path.isabs(self.directory):
            raise ValueError(f"directory: {self.directory!r} is not an absolute path")
        if self.bytes < 1:
            raise ValueError("bytes: must be at least 1")


class LogSettings(Record):
    """``[log]``: the daemon's own log, on standard error."""

    level: str = "info"
    format: str = "text"

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        for key, words in (("level", ("debug", "info", "warning", "error")), ("format", ("text", "json"))):
            if getattr(self, key) not in words:
                raise ValueError(f"{key}: must be one of {', '.join(words)}")


class MetricsSettings(Record):
    """``[metrics]``: where Prometheus may ask."""

    # unix:/path, 127.0.0.1:PORT or [::1]:PORT; empty: nowhere.
    listen: str = ""
    # Of a Unix socket.
    mode: int = 0o660

    def check(self) -> None:
        """See :class:`~kvmd.record.Record`."""
        if self.listen and not re.fullmatch(r"unix:/.+|(127\.0\.0\.1|\[::1\]):[0-9]{1,5}", self.listen):
            raise ValueError("listen: must be unix:/path, 127.0.0.1:PORT or [::1]:PORT")
        if not 0 <= self.mode <= 0o777:
            raise ValueError("mode: must be permission bits, 0 to 0o777")


class Config(Record):
    """All settings."""

    listen: Listen = Listen()
    dumps: Dumps = Dumps()
    limits: Limits = Limits()
    audit: AuditSettings = AuditSettings()
    live: Live = Live()
    cache: CacheSettings = CacheSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    policy: Policy = Policy()


def _line(text: str, section: str, key: str, nth: int = 0) -> int:
    """The number of the line that holds ``key`` in the nth ``[section]`` or ``[[section]]``; 0 if it can't be told."""
    seen, inside = -1, False
    heading = re.compile(r"\s*\[\[?\s*([^\[\]]*?)\s*\]\]?\s*(#.*)?$")
    assignment = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]")
    for number, line in enumerate(text.splitlines(), 1):
        if match := heading.match(line):
            seen += match[1] == section
            inside = match[1] == section and seen == nth
            if (not key and inside) or (match[1] == key and not section):
                return number
        elif (inside or not section) and assignment.match(line):
            return number
    return 0


class _Source:
    """The file being read, for its name and lines in messages."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    def wrong(self, section: str, key: str, what: str, nth: int = 0) -> ConfigError:
        line = _line(self.text, section, key, nth)
        where = f"{self.name}:{line}" if line else self.name
        return ConfigError(f"{where}: {'.'.join(filter(None, (section, key)))}: {what}")


def _value(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``, or ValueError saying what was wanted."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError("must be a list of strings")
        return tuple(value)
    wanted = tuple(item for item in get_args(kind) or (kind,) if item is not type(None))
    if wanted == (float,):
        wanted = (float, int)
    if isinstance(value, bool) != (wanted == (bool,)) or not isinstance(value, wanted):
        names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        raise ValueError(f"must be {names[wanted[0]]}")
    return value


def _section(source: _Source, name: str, kind: type[Kind], table: object) -> Kind:
    if not isinstance(table, Mapping):
        raise source.wrong("", name, "must be a table")
    hints, values = get_type_hints(kind), {}
    for key, value in table.items():
        if key not in hints:
            raise source.wrong(name, key, f"unknown key; [{name}] has {', '.join(hints)}")
        try:
            values[key] = _value(hints[key], value)
        except ValueError as wrong:
            raise source.wrong(name, key, str(wrong)) from None
    try:
        return kind(**values)
    except ValueError as wrong:
        key, _, what = str(wrong).partition(": ")
        raise source.wrong(name, key, what) from None


def _rules(source: _Source, tables: object) -> Policy:
    if not isinstance(tables, list):
        raise source.wrong("", "policy", "write each rule as [[policy]]")
    rules = []
    for nth, table in enumerate(tables):
        values = {}
        for key in ("subjects", "images", "verbs"):
            try:
                values[key] = _value(tuple[str, ...], table.get(key))
            except ValueError as wrong:
                raise source.wrong("policy", key if key in table else "", f"{key} {wrong}", nth) from None
        for key in table:
            if key not in values:
                raise source.wrong("policy", key, "unknown key; [[policy]] has subjects, images, verbs", nth)
        try:
            line = _line(source.text, "policy", "", nth)
            rules.append(Rule(**values, origin=f"{source.name}:{line}"))
        except RuleError as wrong:
            raise source.wrong("policy", wrong.key, str(wrong), nth) from None
    return Policy(tuple(rules))


_SECTIONS = {
    "listen": Listen,
    "dumps": Dumps,
    "limits": Limits,
    "audit": AuditSettings,
    "live": Live,
    "cache": CacheSettings,
    "log": LogSettings,
    "metrics": MetricsSettings,
}


def parse(text: str, name: str) -> Config:
    """Parse a configuration.

    :param name: the file's name, for messages.
    :raises ConfigError: naming file, key and line.
    """
    source = _Source(name, text)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as wrong:
        raise ConfigError(f"{name}: {wrong}") from None
    values: dict[str, Any] = {}
    for key, table in tables.items():
        if key == "policy":
            values[key] = _rules(source, table)
        elif key in _SECTIONS:
            values[key] = _section(source, key, _SECTIONS[key], table)
        else:
            raise source.wrong("", key, f"unknown section; there are {', '.join([*_SECTIONS, 'policy'])}")
    return Config(**values)


def load(path: str | None) -> Config:
    """Read the file at ``path``; None reads the default one, or gives the defaults if there is none."""
    try:
        with open(path or DEFAULT_PATH, encoding="utf-8") as file:
            return parse(file.read(), path or DEFAULT_PATH)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigError(f"{path}: No such file or directory") from None
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path or DEFAULT_PATH}: {wrong}") from None
