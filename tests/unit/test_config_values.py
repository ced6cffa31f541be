"""Values that have the right type and make no sense: refused with file, key and line, and not by a daemon that runs."""

from __future__ import annotations

import pytest

from kvmd.config import ConfigError, Limits, parse


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[limits]\nworker_timeout = nan\n", "x.toml:2: limits.worker_timeout: must be at least 1 and finite"),
        ("[limits]\nstall = inf\n", "x.toml:2: limits.stall: must be at least 1 and finite"),
        ("[limits]\ncalls_per_uid = 0\n", "x.toml:2: limits.calls_per_uid: must be at least 1 and finite"),
        ("[limits]\nworker_linger = -1\n", "x.toml:2: limits.worker_linger: must be at least 0 and finite"),
        ("[limits]\npage_cache = -1\n", "x.toml:2: limits.page_cache: must be at least 0 and finite"),
        ("[limits]\npage_cache = 2147483649\n", "x.toml:2: limits.page_cache: must be at most 2147483648"),
        ("[listen]\nmode = 0o1777\n", "x.toml:2: listen.mode: must be permission bits, 0 to 0o777"),
        ("[listen]\nmode = -1\n", "x.toml:2: listen.mode: must be permission bits, 0 to 0o777"),
        ('[dumps]\ndirectories = ["/a", "b"]\n', "x.toml:2: dumps.directories: 'b' is not an absolute path"),
        ('[cache]\ndirectory = "a"\n', "x.toml:2: cache.directory: 'a' is not an absolute path"),
        ("[cache]\nbytes = 0\n", "x.toml:2: cache.bytes: must be at least 1"),
        ('[dumps]\nkernels = [""]\n', "x.toml:2: dumps.kernels: '' is not an absolute path"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as failure:
        parse(text, "x.toml")
    assert str(failure.value) == says


def test_no_page_cache_is_a_setting() -> None:
    assert parse("[limits]\npage_cache = 0\n", "x.toml").limits.page_cache == 0


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    assert parse("", "x.toml").cache.path == ""
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/kvmd")
    assert parse("", "x.toml").cache.path == "/var/cache/kvmd"
    assert parse('[cache]\ndirectory = ""\n', "x.toml").cache.path == ""
    assert parse('[cache]\ndirectory = "/x"\n', "x.toml").cache.path == "/x"


def test_one_user_can_not_take_all_calls() -> None:
    assert Limits().calls_per_uid * 4 <= Limits().concurrent_calls
