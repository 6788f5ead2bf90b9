"""Hydra's plugins keep the promises of sweeps, or say in one line that they cannot."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.cli.compose import compose
from resnet_train.cli.launchers import launcher_of, plugin_overrides, sweeper_of
from resnet_train.cli.overrides import parse
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.summary import read_summary
from tests.conftest import TINY, Shell


def overrides_for(*overrides: str, max_failures: int | None = None) -> list[str]:
    return plugin_overrides(compose(parse(overrides)).hydra, overrides, max_failures=max_failures)


def test_hydras_own() -> None:
    hydra = compose(parse([])).hydra
    assert (launcher_of(hydra), sweeper_of(hydra)) == ("basic", "basic")
    assert overrides_for(max_failures=3) == []


@pytest.mark.slow
def test_an_optimiser_maximizes_and_outlives_failed_jobs() -> None:
    optuna = ("hydra/sweeper=optuna",)
    assert overrides_for(*optuna) == ["hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0"]
    assert overrides_for(*optuna, "hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=0.5") == [
        "hydra.sweeper.direction=maximize"
    ]
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.direction: jobs return an accuracy, which is to be max"):
        overrides_for(*optuna, "hydra.sweeper.direction=minimize")


def test_jobs_that_run_elsewhere_cannot_end_the_sweep() -> None:
    with pytest.raises(ConfigError, match="max_failures: hydra/launcher=joblib runs all jobs whatever becomes of them"):
        overrides_for("hydra/launcher=joblib", max_failures=1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launcher_keeps_the_promises_of_a_sweep(launcher: str, shell: Shell) -> None:
    (shell.folder / "mine" / "experiment").mkdir(parents=True)
    (shell.folder / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nname: own\n")
    sweep = (*TINY, "--config-dir", "mine", "-m", "experiment=own", "epochs=1", "log_every=1", "sweep=two")
    sweep += (f"hydra/launcher={launcher}",)
    code, out, err = shell.call(*sweep, "optim.lr=0.1,1e30", "seed=0")
    assert code == 1
    assert "training has diverged" in err.splitlines()[-1]
    assert ["finished" in line for line in shell.table(out)] == [True, False]
    jobs = sorted(path for path in (shell.folder / "outputs/sweeps/two").iterdir() if (path / "summary.json").exists())
    assert {job.name.partition("-")[0] for job in jobs} == {"own"}
    assert sorted(found.status for job in jobs if (found := read_summary(job))) == ["failed", "finished"]

    # The same sweep with one job more: what is finished stays, and a job resumes without its folder of options.
    code, out, err = shell.call(*sweep, "optim.lr=0.1", "seed=0,1")
    assert code == 0, err
    assert sum("finished" in line for line in shell.table(out)) == 2
    (shell.folder / "mine").rename(shell.folder / "moved")
    (job,) = (
        path.parent
        for path in (shell.folder / "outputs/sweeps/two").glob("*/invocation.json")
        if "seed=1" in json.loads(path.read_text())["overrides"]
    )
    code, out, err = shell.call(f"resume={job}", "epochs=2")
    assert (code, err) == (0, "")
    assert "epoch 2/2" in out


@pytest.mark.slow
def test_an_optimising_sweeper_takes_the_best(shell: Shell) -> None:
    sweep = ("-m", "epochs=8", "optim.lr=choice(0.0000001,0.05,1e30)", "hydra/sweeper=optuna", "sweep=best")
    code, out, err = shell.call(*TINY, *sweep, "hydra.sweeper.n_trials=8", "hydra.sweeper.sampler.seed=1")
    assert code == 1
    assert err.splitlines()[-1].endswith("jobs of the sweep have failed; train.log in the directory of each says why")
    assert "Best parameters: {'optim.lr': 0.05}" in out


def test_a_plugin_that_is_not_installed(answer: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("-m", "hydra/launcher=nowhere", "seed=0,1") == 2
    assert capsys.readouterr().err.startswith("resnet-train: hydra/launcher: expected one of basic, ")


@pytest.mark.slow
def test_nothing_is_written_for_a_refused_plugin(
    answer: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(*TINY, "-m", "hydra/launcher=joblib", "max_failures=1", "seed=0,1") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "signum", "whole_group", "code"),
    [
        ("basic", signal.SIGUSR1, False, 75),
        pytest.param("joblib", signal.SIGTERM, False, 143, marks=pytest.mark.thorough),
        ("joblib", signal.SIGINT, True, 130),  # as a terminal sends it
        ("submitit_local", signal.SIGTERM, False, 143),
        pytest.param("submitit_local", signal.SIGINT, True, 130, marks=pytest.mark.thorough),
    ],
)
def test_a_signal_saves_the_jobs_that_run(
    launcher: str, signum: signal.Signals, whole_group: bool, code: int, shell: Shell
) -> None:
    length = ("epochs=null", "steps=100000", "checkpoint.every=50steps", "eval_every=50000steps")
    options = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    started = shell.start(
        *(*TINY, *length, "-m", "seed=0,1,2", "sweep=stopped", f"hydra/launcher={launcher}", *options),
        start_new_session=True,
    )
    sweep, running = shell.folder / "outputs/sweeps/stopped", 1 if launcher == "basic" else 2
    deadline = time.monotonic() + 120
    while len(list(sweep.glob("*/checkpoints/step-00000100.pt"))) < running and time.monotonic() < deadline:
        time.sleep(0.01)
    (os.killpg if whole_group else os.kill)(started.pid, signum)
    out, err = started.communicate(timeout=120)
    assert started.returncode == code, err
    found = [summary for path in sweep.glob("*/summary.json") if (summary := read_summary(path.parent))]
    assert len(found) >= running
    assert {summary.status for summary in found} == {"interrupted"}
    for summary in found:
        assert read_checkpoint(Path(summary.directory) / "checkpoints/last.pt")["state"]["step"] == summary.steps
    assert sum(summary.steps >= 50 for summary in found) >= running, "submitit starts the third at once, too"
    assert len(shell.table(out)) >= running
    assert not (sweep / ".stopped").exists()


@pytest.mark.slow
def test_a_signal_in_the_last_evaluation_ends_the_sweep(shell: Shell) -> None:
    long_evaluation = ("epochs=null", "steps=3", "dataset.num_test=100000", "kernels=plain")
    started = shell.start(*TINY, *long_evaluation, "-m", "seed=0,1", "sweep=late")
    log, deadline = None, time.monotonic() + 120
    while (log is None or "directory" not in log.read_text()) and time.monotonic() < deadline:
        log = next(iter((shell.folder / "outputs/sweeps/late").glob("*/train.log")), None)
        time.sleep(0.01)
    time.sleep(1.0)  # the three steps are made
    started.send_signal(signal.SIGINT)
    out, _ = started.communicate(timeout=120)
    assert started.returncode == 130
    assert len(shell.table(out)) == 1, "no other job has begun"


@pytest.mark.slow
def test_equal_samples_share_one_run(shell: Shell) -> None:
    sweep = ("-m", "epochs=1", "optim.lr=choice(0.1)", "hydra/sweeper=optuna", "hydra/launcher=joblib", "sweep=equal")
    code, out, err = shell.call(*TINY, *sweep, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    assert code == 0, err
    assert len(shell.table(out)) == 1
    assert "finished" in shell.table(out)[0]
