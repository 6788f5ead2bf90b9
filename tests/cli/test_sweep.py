"""Sweeps as processes: checked first, a job a directory, continued by name, a table at the end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from resnet_train.cli.compose import started as hydra_started
from resnet_train.cli.overrides import parse
from resnet_train.cli.sweep import expand
from resnet_train.config.store import job_name
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.directory import read_invocation
from resnet_train.runs.summary import read_summary
from tests.conftest import TINY, Shell

SWEEP = (*TINY, "-m", "epochs=null", "steps=120", "checkpoint.every=20steps", "checkpoint.keep=99", "sweep=seeds")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["a=1"], [["a=1"]]),
        (["a=1,2", "b=x", "c=3,4"], [["a=1", "b=x", "c=3"], ["a=1", "b=x", "c=4"], ["a=2", "b=x", "c=3"]]),
        (["a=range(0,1000000000000)"], [["a=0"], ["a=1"], ["a=2"]]),
        (["a=interval(0,1)", "b=1"], [["b=1"]]),
        (["model=glob(plain*4)"], [["model=plain34"], ["model=plain44"]]),
    ],
)
def test_combinations_are_made_one_by_one(overrides: list[str], expected: list[list[str]]) -> None:
    with hydra_started(parse([])):
        assert list(islice(expand(overrides), 3)) == expected


@pytest.mark.slow
def test_what_is_refused_leaves_nothing(
    answer: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for sweep, message in {
        "seed=range(0,1000000000)": "expected a sweep of at most 10,000 jobs, got more; sweep over fewer values",
        "optim.lr=interval(0.1,1)": "optim.lr: expected values to run through, as in 0.1,0.2, got interval(0.1,1), "
        "which takes a sweeper such as hydra/sweeper=optuna",
    }.items():
        assert answer("-m", *TINY, sweep) == 2
        assert capsys.readouterr().err == f"resnet-train: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep(shell: Shell) -> None:
    words = (*TINY, "epochs=1", "-m", "optim.lr=0.1,1e30", "seed=0,1", "hydra.sweep.dir=sweep", "log_every=1")
    code, out, err = shell.call(*words)
    assert code == 1
    table = shell.table(out)
    jobs = [line.split()[-1] for line in table]
    assert sorted(jobs) == sorted(path.name for path in (shell.folder / "sweep").iterdir() if path.is_dir())
    assert all(re.fullmatch(r"resnet8-lr=(0\.1|1e-30|1e30|1e\+30),seed=[01]-[0-9a-f]{8}", job) for job in jobs)
    found = [read_summary(shell.folder / "sweep" / job) for job in jobs]
    assert [job.status for job in found if job] == ["finished", "finished", "failed", "failed"]
    assert found[0].result != found[1].result or found[0].last != found[1].last  # type: ignore[union-attr]
    invocations = [read_invocation(shell.folder / "sweep" / job) for job in jobs]
    assert [one.distinguishing for one in invocations] == [
        [f"optim.lr={lr}", f"seed={seed}"] for lr in ("0.1", "1e+30") for seed in (0, 1)
    ]
    for job in jobs[2:]:
        assert "Traceback (most recent call last)" in (shell.folder / "sweep" / job / "train.log").read_text()
    assert [("finished" in line, "failed" in line) for line in table] == [(True, False)] * 2 + [(False, True)] * 2
    assert f"{100 * found[0].result:.2f} %" in table[0]  # type: ignore[union-attr, operator]
    assert "training has diverged" in err.splitlines()[-1]
    # one of its jobs is a run like any other
    code, out, _ = shell.call(f"resume=sweep/{jobs[0]}", "epochs=2")
    assert code == 0
    assert "epoch 2/2" in out


def results(folder: Path) -> dict[str, str]:
    """Overrides of each job, and its table of metrics."""
    return {
        " ".join(json.loads((job / "invocation.json").read_text())["overrides"]): (job / "metrics.csv").read_text()
        for job in (folder / "outputs/sweeps/seeds").iterdir()
        if job.is_dir()
    }


@pytest.mark.slow
def test_a_sweep_that_was_killed_comes_to_the_same(shell: Shell) -> None:
    for name in ("straight", "killed"):
        (shell.folder / name).mkdir()
    code, _, err = shell.call(*SWEEP, "seed=0,1,2", "model.width=0.25,0.3", cwd=shell.folder / "straight")
    assert (code, err) == (0, "")

    started = shell.start(
        *SWEEP,
        "seed=0,1,2",
        "model.width=0.25,0.3",
        cwd=shell.folder / "killed",
        stdout=subprocess.DEVNULL,
        stderr=None,
    )
    deadline = time.monotonic() + 120
    while (
        len(list((shell.folder / "killed").rglob("checkpoints/step-00000060.pt"))) < 2 and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = results(shell.folder / "killed")
    assert 2 <= len(before) < 6

    # Another order of the values, and one more of them: jobs are known by what they are.
    code, out, err = shell.call(*SWEEP, "model.width=0.3,0.25", "seed=3,2,1,0", cwd=shell.folder / "killed")
    assert (code, err) == (0, "")
    assert "resuming from" in out
    straight, killed = results(shell.folder / "straight"), results(shell.folder / "killed")
    assert len(straight) == 6
    by_words = {frozenset(words.split()): table for words, table in killed.items()}
    assert len(by_words) == len(killed) == 8
    for words, table in straight.items():
        assert by_words[frozenset(words.split())] == table, words
    listed = shell.table(out)
    assert all("finished" in line for line in listed)
    assert [re.findall(r"seed=(\d)", line)[0] for line in listed] == list("32103210")


@pytest.mark.slow
def test_a_sweep_ends_early_where_asked_to(shell: Shell) -> None:
    words = (*TINY, "-m", "epochs=1", "log_every=1", "optim.lr=1e30,2e30,0.1", "sweep=bad", "max_failures=2")
    code, out, err = shell.call(*words)
    assert code == 1
    assert err.splitlines()[-1] == ("resnet-train: the sweep was ended after 2 failed jobs, as max_failures asks for")
    assert [line.count("failed") for line in shell.table(out)] == [1, 1]
    jobs = [path for path in (shell.folder / "outputs/sweeps/bad").iterdir() if path.is_dir()]
    assert len(jobs) == 2
    for job in jobs:
        assert "Traceback (most recent call last)" in (job / "train.log").read_text()
        assert read_checkpoint(job / "checkpoints/last.pt")["state"]["step"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "seed=0,1", "sweep=a/b"), "sweep: expected a name of letters, digits and . _ + -, got 'a/b'"),
        (("-m", "seed=0,1", "sweep=Aux.1"), "sweep: expected a name of letters, digits and . _ + -, got 'Aux.1'"),
        (("-m", "seed=0,1", "sweep=a."), "sweep: expected a name of letters, digits and . _ + -, got 'a.'"),
        (("-m", "seed=0,1", "max_failures=0"), "max_failures: expected a number above 0, got '0'"),
        (("sweep=a",), "sweep: it is for sweeps; put -m in front, or leave it out"),
    ],
)
def test_words_of_sweeps(words: tuple[str, ...], message: str, shell: Shell) -> None:
    assert shell.call(*TINY, *words) == (2, "", f"resnet-train: {message}\n")
    assert list(shell.folder.iterdir()) == []


@pytest.mark.slow
def test_a_corrupt_job_is_listed_with_the_others(shell: Shell) -> None:
    sweep = (*TINY, "-m", "epochs=1", "seed=0,1", "sweep=two")
    assert shell.call(*sweep)[0] == 0
    jobs = sorted(path for path in (shell.folder / "outputs/sweeps/two").iterdir() if path.is_dir())
    (jobs[0] / "invocation.json").write_text("{")
    (shell.folder / "outputs/sweeps/two/stranger").mkdir()
    (shell.folder / "outputs/sweeps/two/stranger/invocation.json").write_text("[]")
    code, out, err = shell.call(*sweep)
    assert (code, err) == (0, "")
    assert len(shell.table(out)) == 3


@pytest.mark.slow
def test_a_folder_of_somebody_else_is_left_alone(shell: Shell) -> None:
    (shell.folder / "theirs").mkdir()
    (shell.folder / "theirs" / "metrics.csv").write_text("my figures\n")
    for arguments in (("hydra.run.dir=theirs",), ("-m", "seed=0,1", "hydra.sweep.dir=theirs")):
        code, _, err = shell.call(*TINY, "epochs=1", *arguments)
        assert code == 2
        assert "expected a new or empty folder" in err
    assert [path.name for path in (shell.folder / "theirs").iterdir()] == ["metrics.csv"]
    assert (shell.folder / "theirs" / "metrics.csv").read_text() == "my figures\n"


def test_names_of_jobs(tmp_path: Path) -> None:
    task = ["model=resnet20", "optim.lr=0.1", "schedule.milestones=[1, 2]", "seed=3"]
    name = job_name("quick", task, "digest of this", str(tmp_path), "optim.lr schedule.milestones seed")
    assert re.fullmatch(r"quick-lr=0\.1,milestones=-1,-2-,seed=3-[0-9a-f]{8}", name)
    long = job_name("quick", ["name=" + "x" * 300], "", str(tmp_path), "name")
    assert len(long) < 90
    (tmp_path / f"quick-{name[-8:]}").mkdir()
    assert job_name("quick", task, "digest of this", str(tmp_path), "seed") == f"quick-{name[-8:]}", (
        "as it was called before"
    )


@pytest.mark.slow
def test_a_second_sweep_of_one_name_is_refused_at_once(shell: Shell) -> None:
    sweep = (*TINY, "-m", "epochs=null", "steps=100000", "checkpoint.every=50steps", "seed=0,1", "sweep=one")
    first = shell.start(*sweep, stdout=subprocess.DEVNULL, stderr=None)
    try:
        deadline = time.monotonic() + 120
        while not list(shell.folder.rglob("step-00000050.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        code, _, err = shell.call(*sweep)
        assert code == 2
        assert re.fullmatch(
            r"resnet-train: the sweep directory .*/outputs/sweeps/one is in use by process \d+ on .*; wait for it, "
            r"stop it, or choose another directory with hydra\.sweep\.dir=FOLDER\n",
            err,
        )
    finally:
        first.kill()
        first.wait()
