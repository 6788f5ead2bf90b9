"""The command line of resnet-report."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.commands.report.main import main
from tests.conftest import Shell

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, standard output and standard error of the program."""

    def made(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnet-report", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        return code, *capsys.readouterr()

    return made


def test_the_table(call: Call, runs: Path) -> None:
    code, out, err = call(runs)
    assert (code, err) == (0, "")
    assert out.startswith("7 runs: 6 finished, 1 failed\n")
    assert re.search(r"^lr +n +test % +test loss +time +images/s$", out, re.MULTILINE)
    assert len(re.findall(r"^0\.0?[15] +3 +\d+\.\d\d ± \d+\.\d\d ", out, re.MULTILINE)) == 2
    assert f"\n    {runs}/diverged/train.log\n" in out


def test_outputs_and_latest(call: Call, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call() == (
        2,
        "",
        "resnet-report: expected a run directory or a folder of runs, got 'outputs', which does not exist\n",
    )
    assert call("latest")[0] == 2
    (tmp_path / "outputs").symlink_to(runs)
    assert call()[1].startswith("7 runs: ")
    assert call("latest")[1].startswith("1 run: 1 failed\n")


def test_files(call: Call, runs: Path, tmp_path: Path) -> None:
    code, out, err = call(runs, "--csv", tmp_path / "a.csv", "--markdown", tmp_path / "a.md")
    assert (code, err) == (0, "") and out.startswith("7 runs")
    assert len(list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))) == 3
    assert len((tmp_path / "a.md").read_text().partition("\n\n")[0].splitlines()) == 4
    assert call(runs, "--csv", "-")[1] == (tmp_path / "a.csv").read_text()
    assert call(runs, "--markdown", "-")[1] == (tmp_path / "a.md").read_text()
    assert json.loads(call(runs, "--json")[1])["metric"] == "accuracy"
    assert json.loads(call(runs, "--json", "--sort", "loss")[1])["metric"] == "loss"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "expected a run directory or a folder of runs, got 'nowhere', which does not exist"),
        (["RUNS", "--sort", "beauty"], 2, "--sort: expected one of accuracy, error, loss, .*, got 'beauty'"),
        (["RUNS", "--json", "--csv", "-"], 2, "expected one format on standard output, got --csv and --json; give .*"),
        (["RUNS", "--html", "-"], 2, "--html: expected a file, got -; a browser opens files"),
        (["RUNS", "--watch", "--json"], 2, "--watch draws on the terminal; expected no --json beside it"),
        (["RUNS", "--watch", "2", "--csv", "a.csv"], 2, "--watch draws on the terminal; expected no --csv beside it"),
        (["--watch", "RUNS"], 2, "--watch: expected a terminal to draw on; leave it out to print the report once"),
        (["RUNS", "--watch", "0"], 2, "--watch: expected 0.1 to 86400 seconds, got 0"),
        (
            ["RUNS", "--csv", "missing/a.csv"],
            1,
            "cannot write missing/a.csv: No such file or directory; choose another file",
        ),
    ],
)
def test_what_is_refused(
    call: Call,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = call(*(runs if word == "RUNS" else word for word in arguments))
    assert (found, out) == (code, "")
    assert re.fullmatch(f"resnet-report: {message}\n", err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_answers_come_without_torch(shell: Shell, runs: Path) -> None:
    probe = (
        "import sys; from resnet_train.commands.report.main import main; main(); sys.exit(7 * ('torch' in sys.modules))"
    )
    code, out, err = shell.call(str(runs), program=(sys.executable, "-c", probe))
    assert (code, err) == (0, "") and out.startswith("7 runs")
    code, out, _ = shell.call("--help", program=(sys.executable, "-c", probe))
    assert code == 0 and "examples: resnet-report outputs" in out


@pytest.mark.slow
def test_nobody_reads_on(shell: Shell, runs: Path) -> None:
    process = shell.start(str(runs), "--json", program="resnet-report")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_report_that_cannot_be_written_is_an_error(shell: Shell, runs: Path) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*shell.program("resnet-report"), str(runs)], env=shell.environment(), stdout=full, stderr=subprocess.PIPE
        )
    expected = b"resnet-report: standard output: cannot write the results: No space left on device\n"
    assert (process.returncode, process.stderr) == (1, expected)


@pytest.mark.slow
def test_watching(shell: Shell, runs: Path) -> None:
    """On a terminal of its own: drawn again and again until Ctrl-C, and the last drawing stays."""
    ours, theirs = pytest.importorskip("pty").openpty()
    command = [*shell.program("resnet-report"), str(runs / "deep"), "--watch", "0.2"]
    environment = shell.environment(COLUMNS="80", LINES="24", TERM="xterm")
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 60
    while seen.count(b"\x1b[H") < 3:
        assert time.monotonic() < deadline, seen
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    try:
        while more := os.read(ours, 65536):
            seen += more
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert seen.startswith(b"\x1b[?1049h\x1b[?25l\x1b[H")
    drawn, _, left = seen.rpartition(b"\x1b[?25h\x1b[?1049l")
    assert b"6 runs: 6 finished" in drawn
    assert b"6 runs: 6 finished" in left and left.endswith(b"interrupted\r\n")
