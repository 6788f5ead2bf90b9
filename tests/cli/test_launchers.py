"""Hydra's plugins keep the promises of sweeps, or say in one line that they cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.cli.compose import compose
from resnet_train.cli.launchers import launcher_of, plugin_overrides, sweeper_of
from resnet_train.cli.overrides import parse
from resnet_train.errors import ConfigError
from resnet_train.runs.summary import read_summary
from tests.conftest import TINY, Shell


def overrides_for(*overrides: str, max_failures: int | None = None) -> list[str]:
    return plugin_overrides(compose(parse(overrides)).hydra, overrides, max_failures=max_failures)


def test_hydras_own() -> None:
    hydra = compose(parse([])).hydra
    assert (launcher_of(hydra), sweeper_of(hydra)) == ("basic", "basic")
    assert overrides_for(max_failures=3) == []


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


def test_nothing_is_written_for_a_refused_plugin(
    answer: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(*TINY, "-m", "hydra/launcher=joblib", "max_failures=1", "seed=0,1") == 2
    assert list(tmp_path.iterdir()) == []
