"""Jobs of a sweep that wait for their turn."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from resnet_train.commands.report.records import find, read
from resnet_train.commands.report.sweeps import PLAN, waiting_jobs
from resnet_train.runs.directory import Invocation, lock
from tests.conftest import Shell

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def plan(folder: Path, *overrides: str, sweeper: str = BASIC) -> None:
    hydra = {"sweeper": {"_target_": sweeper}, "overrides": {"task": list(overrides)}}
    (folder / PLAN).write_text(yaml.safe_dump({"hydra": hydra}))


def test_what_has_not_begun_waits(tmp_path: Path) -> None:
    plan(tmp_path, "seed=0,1", "optim.lr=choice(0.1,0.2)", "epochs=2")
    (tmp_path / "first").mkdir()
    Invocation([], ["seed=0", "optim.lr=0.1", "epochs=2"]).write(tmp_path / "first")
    begun = [record for record in [read(tmp_path / "first")] if record is not None]
    assert waiting_jobs(tmp_path, begun) == [], "nobody works on it"
    with lock(tmp_path, kind="sweep"):
        found = waiting_jobs(tmp_path, begun)
        assert [record.overrides for record in found] == [
            ["seed=0", "optim.lr=0.2", "epochs=2"],
            ["seed=1", "optim.lr=0.1", "epochs=2"],
            ["seed=1", "optim.lr=0.2", "epochs=2"],
        ]
        assert {record.status for record in found} == {"waiting"}
        assert [record.directory.name for record in found] == [
            f"seed={seed} optim.lr={lr}" for seed, lr in ((0, 0.2), (1, 0.1), (1, 0.2))
        ]


@pytest.mark.parametrize("text", ["", "{broken", "hydra: 1", "hydra: {sweeper: null}", "a: &a [1]\nb: *a"])
def test_a_plan_that_cannot_be_read_names_no_job(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN).write_text(text)
    with lock(tmp_path, kind="sweep"):
        assert waiting_jobs(tmp_path, []) == []
        (tmp_path / PLAN).unlink()
        assert waiting_jobs(tmp_path, []) == []


def test_other_sweepers_choose_their_jobs_as_they_go(tmp_path: Path) -> None:
    plan(tmp_path, "seed=0,1", sweeper="hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper")
    with lock(tmp_path, kind="sweep"):
        assert waiting_jobs(tmp_path, []) == []


@pytest.mark.slow
def test_a_sweep_at_work(shell: Shell, tiny_overrides: tuple[str, ...]) -> None:
    words = ("-m", *tiny_overrides, "epochs=100000", "seed=0,1,2", "hydra.sweep.dir=sweep")
    process = shell.start(*words)
    try:
        shell.wait_for("sweep", process)
        while not list(shell.folder.glob("sweep/*/metrics.csv")):
            assert process.poll() is None
            time.sleep(0.05)
        (record,) = find([str(shell.folder)])
        assert record.status == "running"
        found = waiting_jobs(shell.folder / "sweep", [record])
        assert [one.overrides[-1] for one in found] == ["seed=1", "seed=2"]
        code, out, err = shell.call("sweep", program="resnet-report")
        assert (code, err) == (0, "")
        assert out.startswith("3 runs: 1 running, 2 waiting\n") and out.endswith("waiting:\n  seed=1\n  seed=2\n")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert waiting_jobs(shell.folder / "sweep", [record]) == []
    shutil.rmtree(shell.folder / "sweep")
