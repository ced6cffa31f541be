"""The units as systemd reads and scores them; nothing is started. What they do is shown in a guest: tests/guest."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmd.config import load

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = ("kvmd.socket", "kvmd.service", "kvmd-dumps.socket", "kvmd-dumps.service")
DROP_INS = sorted(path.name for path in (SYSTEMD / "kvmd.service.d").glob("*.conf"))

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze IS MISSING: THE UNITS ARE NOT CHECKED (apt: systemd)",
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that is there."""
    for name in UNITS:
        text = (SYSTEMD / name).read_text().replace("ExecStart=/usr/bin/kvmd", f"ExecStart={sys.executable}")
        (tmp_path / name).write_text(text)
    return tmp_path


def systemd_analyze(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin", "SYSTEMD_COLORS": "0", "LANG": "C.UTF-8"}
    return subprocess.run(
        ["systemd-analyze", *words], env=environ, cwd=folder, capture_output=True, text=True, timeout=60
    )


@analyze
@pytest.mark.parametrize("unit", UNITS)
def test_nothing_in_a_unit_is_wrong(units: Path, unit: str) -> None:
    done = systemd_analyze("verify", "--man=no", f"./{unit}", folder=units)
    said = [line for line in done.stderr.splitlines() if "kvmd" in line]  # the machine's own units may be wrong
    assert not said
    assert done.returncode == 0, done.stderr


@analyze
@pytest.mark.parametrize(("unit", "most"), [("kvmd.service", 19), ("kvmd-dumps.service", 7)])
def test_exposure(units: Path, unit: str, most: int) -> None:
    """In tenths: at most 1.9, and 0.7 for dumps only."""
    words = ("security", "--offline=true", f"--threshold={most}", "--no-pager", f"./{unit}")
    done = systemd_analyze(*words, folder=units)
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout


@analyze
@pytest.mark.parametrize("name", DROP_INS)
def test_drop_ins(units: Path, name: str) -> None:
    """A drop-in has no errors; what it costs stays within what docs/operating.md says."""
    folder = units / "kvmd.service.d"
    folder.mkdir()
    shutil.copy(SYSTEMD / "kvmd.service.d" / name, folder)
    done = systemd_analyze("verify", "--man=no", "./kvmd.service", folder=units)
    assert not [line for line in done.stderr.splitlines() if "kvmd" in line]
    scored = systemd_analyze("security", "--offline=true", "--threshold=21", "./kvmd.service", folder=units)
    assert scored.returncode == 0, scored.stdout


@analyze
@pytest.mark.parametrize("unit", ["kvmd", "kvmd-dumps"])
def test_clients_of_other_hosts_cost_the_service_nothing(units: Path, unit: str) -> None:
    """The port is in the socket's drop-in; the service goes without any network, within the same exposure."""
    folder = units / f"{unit}.socket.d"
    folder.mkdir()
    shutil.copy(SYSTEMD / "kvmd.socket.d" / "remote.conf", folder)
    done = systemd_analyze("verify", "--man=no", f"./{unit}.socket", folder=units)
    assert not [line for line in done.stderr.splitlines() if "kvmd" in line]
    assert done.returncode == 0, done.stderr
    service = (SYSTEMD / f"{unit}.service").read_text().splitlines()
    assert {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "IPAddressDeny=any"} <= set(service)


@pytest.mark.parametrize("unit", ["kvmd.service", "kvmd-dumps.service"])
def test_every_capability_is_justified(unit: str) -> None:
    """Each that a unit has is named in its comment, and there is no setting with one that isn't."""
    text = (SYSTEMD / unit).read_text()
    settings = [
        line for line in text.splitlines() if line.startswith(("CapabilityBoundingSet=", "AmbientCapabilities="))
    ]
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert settings
    for line in settings:
        for capability in line.partition("=")[2].split():
            assert re.search(rf"^#   {capability}\b", comments, re.M), capability


@pytest.mark.parametrize("unit", ["kvmd.service", "kvmd-dumps.service"])
def test_what_is_left_out_is_left_out(unit: str) -> None:
    """A setting that a comment says is left out isn't there."""
    text = (SYSTEMD / unit).read_text()
    absent = re.findall(r"^#   (\w+)=", text, re.M)
    assert absent
    assert not [name for name in absent if re.search(rf"^{name}=", text, re.M)]


def test_the_example_denies_everybody() -> None:
    config = load(str(SYSTEMD / "kvmd.toml"))
    assert not config.policy.rules
    assert config == type(config)()  # what it shows as defaults are the defaults


def test_the_example_holds_when_uncommented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line behind a "#" that looks like a setting is one."""
    monkeypatch.setattr("grp.getgrnam", lambda _: type("Group", (), {"gr_gid": 990}))
    monkeypatch.setattr("pwd.getpwnam", lambda _: type("User", (), {"pw_uid": 1000}))
    text = (SYSTEMD / "kvmd.toml").read_text()
    settings = re.sub(r"^# (?=\w+ = |\[\[)", "", text, flags=re.M)
    (tmp_path / "kvmd.toml").write_text(settings)
    config = load(str(tmp_path / "kvmd.toml"))
    assert len(config.policy.rules) == 2
    assert config.limits == type(config.limits)()
