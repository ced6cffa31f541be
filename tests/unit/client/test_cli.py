"""kvmctl against a fake image: output, exit statuses, errors."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest

from kvmd.errors import Reason, error
from libkvm import cli
from libkvm.cli import image, private
from libkvm.cli.hexdump import hexdump
from unit.client.fake import BASE, MEMORY


@pytest.fixture
def kvmctl(target, capfdbinary):
    """Run kvmctl in this process: its exit status, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main(words)
        out, err = capfdbinary.readouterr()
        return status, out.decode("latin-1"), err.decode()

    return run


def usage(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code


def test_ps(kvmctl, fake):
    status, out, err = kvmctl("ps", "-M", "/d/vmcore")

    assert (status, err) == (0, "")
    assert out.splitlines() == [
        " UID PID PPID S NI VSZ RSS COMMAND",
        "   0   1    0 S  0   8   4 /sbin/init --quiet",
        "   0   2    0 I  0   -   - [kthreadd]",
        r"1001  30    1 R -5   - " + r"  - evil\x1b]0;x\x07 caf" + "\xc3\xa9" + r" \xff\x0a",
    ]
    assert fake.seen[0][1].corefile == "/d/vmcore"


def test_ps_json(kvmctl):
    status, out, _ = kvmctl("--json", "ps")
    document = json.loads(out)

    assert status == 0
    assert list(document) == ["processes"]
    init, kthread, hostile = document["processes"]
    assert (init["pid"], init["ppid"], init["uid"], init["comm"]) == (1, 0, 0, "init")
    assert init["args"] == ["/sbin/init", "--quiet"]
    assert kthread["rss_bytes"] is None
    assert hostile["args_error"] == {"reason": "NOT_PRESENT", "message": "swapped out", "address": 0x7000}
    assert os.fsencode(hostile["comm"]) == b"\x1b[2J\xff"


@pytest.mark.parametrize("words", [("-p", "30"), ("-u", "1001")])
def test_ps_filters(kvmctl, words):
    _, out, _ = kvmctl("ps", "--json", *words)

    assert [process["pid"] for process in json.loads(out)["processes"]] == [30]


def test_ps_other_options(kvmctl, fake):
    kvmctl("ps", "-H", "-t", "-1")
    request = fake.seen[1][1]

    assert (request.threads, request.filter, request.argument) == (True, 5, -1)


def test_ps_without_the_right_to_arguments(kvmctl, fake):
    fake.fail["GetProcs"] = error(Reason.POLICY_DENIED, "no arguments for you", path="x")
    status, out, _ = kvmctl("ps")

    assert status == 0
    assert "[init]" in out


def test_info(kvmctl):
    status, out, _ = kvmctl("info")

    assert status == 0
    assert out.splitlines() == [
        "format         elf",
        "live           no",
        "release        6.1",
        "page_size      4096",
        "kaslr_offset   0x1000",
        "phys_base      -0x1000",
        "load_average   0.50 0.25 0.12",
    ]


def test_info_json(kvmctl):
    document = json.loads(kvmctl("info", "--json")[1])

    assert document["kaslr_offset"] == 0x1000
    assert document["load_average"] == [0.5, 0.25, 0.125]
    assert document["panic_message"] is None


def test_nlist(kvmctl):
    status, out, err = kvmctl("nlist", "jiffies", "nope", "_stext")

    assert status == 1
    assert out == "ffffffff81001000 D jiffies\nffffffff81000000 T _stext\n"
    assert err == "kvmctl: nope: no such symbol\n"


def test_nlist_json(kvmctl):
    status, out, _ = kvmctl("nlist", "--json", "jiffies")

    assert status == 0
    assert json.loads(out)["symbols"] == [
        {"name": "jiffies", "value": BASE + 0x1000, "n_type": 7, "size": 0, "source": "kallsyms", "module": ""}
    ]


@pytest.mark.parametrize("where", [hex(BASE + 0x1000), str(BASE + 0x1000), "jiffies", "_stext+0x1000"])
def test_read(kvmctl, where):
    status, out, _ = kvmctl("read", where, "20")

    assert status == 0
    assert out.splitlines() == [
        "ffffffff81001000  50 51 52 53 54 55 56 57  58 59 5a 5b 5c 5d 5e 5f  |PQRSTUVWXYZ[\\]^_|",
        "ffffffff81001010  60 61 62 63              " + " " * 25 + "|`abc|",
        "ffffffff81001014",
    ]


def test_read_defaults_to_64_bytes(kvmctl):
    assert len(kvmctl("read", hex(BASE))[1].splitlines()) == 5


def test_read_json(kvmctl):
    document = json.loads(kvmctl("read", hex(BASE), "4", "--json")[1])

    assert document == {"address": BASE, "length": 4, "data": "00010203"}


def test_read_raw(kvmctl):
    assert kvmctl("read", "--raw", hex(BASE), "3000000")[1].encode("latin-1") == MEMORY[:3000000]


def test_read_shows_what_is_before_a_fault(kvmctl):
    status, out, err = kvmctl("read", hex(BASE + len(MEMORY) - 2), "16")

    assert status == 1
    assert out.count("\n") == 1
    assert err == "kvmctl: not mapped\n"


@pytest.mark.parametrize("words", [("nope",), ("jiffies+x",), ("jiffies", "4", "--physical")])
def test_read_of_nothing(kvmctl, words):
    status, out, err = kvmctl("read", *words)

    assert (status, out) == (1, "")
    assert err.startswith("kvmctl: ")


def test_dmesg(kvmctl):
    status, out, _ = kvmctl("dmesg")

    assert status == 0
    assert out.splitlines() == [
        "[    0.000000] Linux version",
        "[    1.234567] two",
        r"[    1.234567] lines\x1b[31m",
    ]


def test_dmesg_json(kvmctl):
    records = json.loads(kvmctl("dmesg", "--json")[1])["records"]

    assert records[1]["text"] == "two\nlines\x1b[31m"
    assert records[0]["level"] == 5


def test_args(kvmctl):
    assert kvmctl("args", "1") == (0, "argv[0]: /sbin/init\nargv[1]: --quiet\n", "")
    assert json.loads(kvmctl("args", "1", "--json", "-e")[1]) == {
        "pid": 1,
        "args": ["/sbin/init", "--quiet"],
        "environ": ["/sbin/init", "--quiet"],
    }


def test_args_shows_what_could_be_read(kvmctl):
    status, out, err = kvmctl("args", "30")

    assert status == 1
    assert out.splitlines()[0] == r"argv[0]: evil\x1b]0;x\x07"
    assert err == "kvmctl: swapped out\n"
    assert kvmctl("args", "99")[0] == 1


def test_the_target_option_goes_before_or_after_the_command(target, monkeypatch, capsys):
    monkeypatch.setenv("KVMD_TARGET", "unix:/nowhere")

    assert cli.main(["--target", target, "info"]) == 0
    assert cli.main(["info", "--target", target]) == 0
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err.startswith("kvmctl: no kvmd answers on unix:/nowhere")


@pytest.mark.parametrize("command", ["info", "ps", "dmesg"])
def test_image_options(kvmctl, fake, command):
    assert kvmctl(command, "--core", "c", "--exec", "e", "--swap", "a:b")[0] == 0
    request = fake.seen[0][1]
    assert (request.corefile, request.execfile, list(request.swapfiles)) == ("c", "e", ["a", "b"])


@pytest.mark.parametrize(
    "words",
    [(), ("nope",), ("read",), ("read", "0", "-5"), ("ps", "-p", "x"), ("ps", "-p", "1", "-u", "2"), ("nlist",)],
)
def test_wrong_usage_is_2(words, capsys):
    assert usage(*words) == 2


def test_messages_are_harmless_to_a_terminal(kvmctl, fake):
    fake.fail["Open"] = error(Reason.CORRUPT_IMAGE, "bad \x1b[2J")

    assert kvmctl("info") == (1, "", "kvmctl: bad \\x1b[2J\n")


def run_apart(target: str, *words: str, **options) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "KVMD_TARGET": target, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "libkvm", *words], check=False, env=environment, timeout=60, **options
    )


def test_a_closed_pipe_is_quiet(target):
    reader, writer = os.pipe()
    os.close(reader)
    done = run_apart(target, "read", "--raw", hex(BASE), "3000000", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_is_an_error(target):
    with open("/dev/full", "wb") as full:
        done = run_apart(target, "info", stdout=full, stderr=subprocess.PIPE)

    assert done.returncode == 1
    assert done.stderr == b"kvmctl: No space left on device\n"


def test_an_ascii_terminal_gets_escapes(target):
    done = run_apart(target, "ps", capture_output=True, env={"PYTHONIOENCODING": "ascii"})

    assert b"caf\\xe9" in done.stdout


def test_hexdump_collapses_repeated_lines():
    lines = list(hexdump(0, [b"\0" * 40, b"\0" * 24 + b"x"]))

    assert [line[:18].rstrip() for line in lines] == ["0000000000000000", "*", "0000000000000040", "0000000000000041"]


class TestPrivate:
    """When a daemon of one's own is started; that it works is the contract tests' concern."""

    @pytest.fixture(autouse=True)
    def nothing_answers(self, monkeypatch, tmp_path):
        monkeypatch.delenv("KVMD_TARGET", raising=False)
        monkeypatch.setattr(image, "DEFAULT_TARGET", f"unix:{tmp_path}/none")

    @pytest.mark.parametrize(("name", "why"), [("gone", "No such file"), (".", "not a regular file")])
    def test_only_for_files_of_ones_own(self, tmp_path, capsys, name, why):
        assert cli.main(["info", "-M", str(tmp_path / name)]) == 1
        assert why in capsys.readouterr().err

    def test_says_what_to_install(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "core").touch()
        monkeypatch.setattr(private.importlib.util, "find_spec", lambda name: None)

        assert cli.main(["info", "-M", str(tmp_path / "core")]) == 1
        assert "pip install 'libkvm[daemon]'" in capsys.readouterr().err

    def test_a_daemon_that_fails_to_start_tells_why(self, capsys):
        with (
            pytest.raises(private.KvmError, match="did not start: broken"),
            private._running([sys.executable, "-c", "import sys; sys.exit('broken')"]),
        ):
            pass

    def test_a_daemon_that_does_not_stop_is_killed(self):
        """In a process without gRPC's threads, as kvmctl is when it starts one: a fork does not agree with them."""
        deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('kvmd: ready', file=sys.stderr)"
        code = (
            "import sys; from libkvm.cli import private; private._STOP = 0.1\n"
            f"with private._running([sys.executable, '-u', '-c', {deaf + '; signal.pause()'!r}]): print('ran')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr

    def test_a_running_daemon_is_preferred(self, target, tmp_path, monkeypatch, capsys):
        monkeypatch.delenv("KVMD_TARGET")
        monkeypatch.setattr(image, "DEFAULT_TARGET", target)
        monkeypatch.setattr("libkvm.session.DEFAULT_TARGET", target)

        assert cli.main(["info", "-M", "/whatever"]) == 0


class TestSystem:
    def test_swap(self, kvmctl):
        assert kvmctl("swap") == (
            0,
            "     TYPE SIZE USED PRIO                                 UUID   IMAGE NAME\n"
            "partition    8    4   -2 00112233-4455-6677-8899-aabbccddeeff vda.img /dev/vda\n"
            "     file    1    0    5                                    -       - /swap\\x1b\\xff\n"
            "             9    4                                                   total\n",
            "",
        )
        document = json.loads(kvmctl("swap", "--json")[1])
        assert document["total"] == {"size_bytes": 9216, "used_bytes": 4096}
        assert document["areas"][0]["path"] == "/dev/vda"

    def test_loadavg(self, kvmctl):
        assert kvmctl("loadavg")[1] == "0.50 0.25 0.12\n"
        assert json.loads(kvmctl("loadavg", "--json")[1]) == {"load_average": [0.5, 0.25, 0.125]}

    def test_files(self, kvmctl):
        status, out, _ = kvmctl("files")

        assert status == 0
        assert [line.split() for line in out.splitlines()[1:]] == [
            ["1", "3", "character", "rw", "4", "5", "0", "/dev/null"],
            ["30", "3", "character", "rw", "4", "5", "0", "socket:[7]"],
        ]
        assert len(json.loads(kvmctl("files", "-p", "30", "--json")[1])["files"]) == 1

    def test_cpus(self, kvmctl):
        lines = kvmctl("cpus")[1].splitlines()

        assert lines[1].split()[:2] == ["all", "1.02"]
        assert lines[4].split()[:2] == ["3", "-"]
        assert json.loads(kvmctl("cpus", "--json")[1])["cpus"][2]["online"] is False


def test_memory_of_a_process(kvmctl):
    assert kvmctl("read", "--raw", "--pid", "1", "0x400000", "14") == (0, "memory of init", "")
    assert kvmctl("read", "--pid", "1", "jiffies")[0] == 1
    assert usage("read", "--pid", "1", "--physical", "0") == 2


def test_no_files(kvmctl, fake):
    assert kvmctl("loadavg", "--no-files", "-M", "x")[0] == 0
    assert fake.seen[0][1].flags == 0x80000000
    assert kvmctl("read", "--no-files", "0x400000")[0] == 1


def test_no_files_without_a_daemon_starts_one(kvmctl, target, monkeypatch):
    given = []

    @contextlib.contextmanager
    def private_daemon(files):
        given.append(files)
        yield target

    monkeypatch.delenv("KVMD_TARGET")
    monkeypatch.setattr(image, "answers", lambda name: False)
    monkeypatch.setattr(image, "private_daemon", private_daemon)
    assert kvmctl("loadavg", "--no-files")[0] == 0
    assert given == [[]]
