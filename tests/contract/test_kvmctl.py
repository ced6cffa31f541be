"""kvmctl as its users run it, and its private daemon."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import tempfile
import time

import pytest

from images import fixture

TRANSPORTS = ["grpc"]


def kvmctl(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, "-m", "libkvm", *words],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def document(*words: str, **env: str) -> dict:
    done = kvmctl("--json", *words, **env)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_ps(dump):
    processes = {process["pid"]: process for process in document("ps", "-M", dump.path)["processes"]}
    plain = processes[dump.named("bed-plain")]

    assert plain["args"] == dump.processes[plain["pid"]]["argv"]
    assert (plain["ppid"], plain["uid"], plain["comm"]) == (1, 0, "bedguest")


def test_info_nlist_read_and_dmesg(dump):
    assert document("info", "-M", dump.path)["release"] == dump.truth["release"]
    [symbol] = document("nlist", "-M", dump.path, "linux_banner")["symbols"]
    assert symbol["value"] == dump.symbol("linux_banner")
    read = document("read", "-M", dump.path, "linux_banner", "14")
    assert bytes.fromhex(read["data"]) == b"Linux version "
    assert document("dmesg", "-M", dump.path)["records"][0]["text"]


def test_nlist_says_where_values_come_from():
    whole = fixture("debian-6.1-panic/vmcore.kdump").path
    kernel, module = document("nlist", "-M", str(whole), "linux_banner", "vp_modern_probe")["symbols"]
    part = str(fixture("micro/zstd").path)
    [vmcoreinfo] = document("nlist", "-M", part, "init_uts_ns", KVMD_TARGET="")["symbols"]

    assert (kernel["source"], kernel["module"]) == ("kallsyms", "")
    assert (module["source"], module["module"]) == ("kallsyms", "virtio_pci_modern_dev")
    assert (vmcoreinfo["source"], vmcoreinfo["module"]) == ("vmcoreinfo", "")


def test_args(dump):
    pid = dump.named("bed-user")

    assert document("args", "-M", dump.path, str(pid), "-e") == {
        "pid": pid,
        "args": dump.processes[pid]["argv"],
        "environ": dump.processes[pid]["env"],
    }


def test_what_the_kernel_counts(one):
    swap = document("swap", "-M", one.path)

    assert [area["path"] for area in swap["areas"]] == ["/dev/vda", "/mnt/swapfile"]
    assert swap["total"]["size_bytes"] == sum(area["size_bytes"] for area in swap["areas"])
    assert len(document("loadavg", "-M", one.path)["load_average"]) == 3
    assert len(document("cpus", "-M", one.path)["cpus"]) == one.truth["cpus_online"]
    files = document("files", "-M", one.path, "-p", "1")["files"]
    assert {file["pid"] for file in files} == {1}
    assert "/dev/console" in kvmctl("files", "-M", one.path).stdout


def test_any_swap():
    """Of /swapz, behind zswap, nothing in the dump shows that an image is the right one."""
    words = ("swap", "-M", str(fixture("swap-6.12/vmcore.kdump").path), "-W", str(fixture("swap-6.12/swapz.img").path))
    for more, image in ([], ""), (["--any-swap"], words[-1]):
        areas = {area["path"]: area["satisfied_by"] for area in document(*words, *more, KVMD_TARGET="")["areas"]}
        assert areas["/swapz"] == image


def test_memory_of_a_process(one):
    each = one.processes[one.named("bed-plain")]
    words = ("read", "-M", one.path, "--raw", "--pid", str(each["pid"]), hex(each["arg_start"]), "9")

    assert kvmctl(*words).stdout == each["argv"][0][:9]


def test_no_files(one):
    assert os.getpid() in {process["pid"] for process in document("ps", "--no-files")["processes"]}
    assert kvmctl("nlist", "--no-files", "jiffies").returncode == 1


def test_human_output(one):
    ps = kvmctl("ps", "-M", one.path).stdout
    text = kvmctl("read", "--string", "-M", one.path, "linux_banner", "13").stdout
    assert text == "Linux version\n"
    document = json.loads(kvmctl("--json", "read", "--string", "-M", one.path, "linux_banner", "5").stdout)
    assert (document["length"], document["string"]) == (5, "Linux")
    hexdump = kvmctl("read", "-M", one.path, "linux_banner", "14").stdout

    assert "/usr/sbin/bed-plain --config /etc/bed.conf two words" in ps
    assert "4c 69 6e 75 78 20 76 65  72 73 69 6f 6e 20        |Linux version |" in hexdump


def test_failures(one):
    done = kvmctl("read", "-M", one.path, "0x10", "4")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kvmctl: ")


@pytest.fixture
def no_daemon():
    """An environment without KVMD_TARGET, on a host where no kvmd runs."""
    if os.path.exists("/run/kvmd/kvmd.sock"):
        pytest.skip("a kvmd runs on this host")
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield {"KVMD_TARGET": "", "TMPDIR": folder}
        assert os.listdir(folder) == []


def test_a_private_daemon_serves_ones_own_dump(one, no_daemon):
    assert document("info", "-M", one.path, **no_daemon)["release"] == one.truth["release"]


def test_a_private_daemon_shows_what_proc_does(no_daemon):
    assert os.getpid() in {process["pid"] for process in document("ps", "--no-files", **no_daemon)["processes"]}


def test_a_private_daemon_opens_what_a_link_points_to(one, no_daemon, tmp_path):
    (tmp_path / "link").symlink_to(one.path)
    (tmp_path / "kvmd.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "libkvm", "info", "-M", "link"],
        check=False, cwd=tmp_path, env={**os.environ, **no_daemon}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert one.truth["release"] in done.stdout


def test_a_private_daemon_has_a_socket_where_temporary_files_have_long_names(one, no_daemon):
    folder = os.path.join(no_daemon["TMPDIR"], "x" * 100)
    os.mkdir(folder)
    done = kvmctl("info", "-M", one.path, **{**no_daemon, "TMPDIR": folder})
    os.rmdir(folder)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_private_daemon_stops_when_the_command_fails(one, no_daemon):
    assert kvmctl("nlist", "-M", one.path, "no_such_symbol", **no_daemon).returncode == 1


def test_a_private_daemon_stops_when_kvmctl_is_told_to(one, no_daemon):
    process = subprocess.Popen(
        [sys.executable, "-m", "libkvm", "read", "--raw", "-M", one.path, "__start_rodata", "100000000"],
        env={**os.environ, **no_daemon}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    process.stdout.read(1)  # it has begun to read
    process.terminate()
    process.stdout.close()
    process.wait(30)

    assert process.returncode in {0, 1, 143}
    deadline = time.monotonic() + 10
    while orphans() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not orphans()


def orphans() -> list[str]:
    """The daemons whose socket is in a folder that kvmctl made and left."""
    words = [(name, word) for name in glob.glob("/proc/[0-9]*/cmdline") for word in command_line(name)]
    return [
        name
        for name, word in words
        if word.startswith(b"unix:") and b"/kvmctl-" in word and not os.path.exists(os.path.dirname(word[5:]))
    ]


def command_line(name: str) -> list[bytes]:
    try:
        with open(name, "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
