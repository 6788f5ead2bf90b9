"""Finding and reading runs, whatever became of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.commands.report.records import RunRecord, find, latest, read
from resnet_train.errors import ConfigError
from resnet_train.runs.directory import Invocation, lock
from tests.conftest import Shell


def record_of(directory: Path) -> RunRecord:
    found = read(directory)
    assert found is not None
    return found


def test_runs_are_found_at_any_depth(runs: Path) -> None:
    found = find([str(runs)])
    names = [record.directory.relative_to(runs).as_posix() for record in found]
    assert names == [*(f"deep/{lr}-{seed}" for lr in ("0.05", "0.1") for seed in range(3)), "diverged"]
    assert [record.status for record in found] == [*["finished"] * 6, "failed"]
    assert find([str(runs / "deep"), str(runs / "deep/../diverged"), str(runs)]) == found, "each once"
    assert [record.directory for record in find([str(runs / "diverged")])] == [runs / "diverged"]


def test_a_finished_run(runs: Path) -> None:
    record = record_of(runs / "deep/0.1-2")
    assert (record.status, record.seed, record.precision, record.progress, record.error) == (
        *("finished", 2, "fp32"),
        *(None, None),
    )
    assert record.flat["optim.lr"] == 0.1 and record.config["optim"]["lr"] == 0.1
    assert record.overrides[-1] == "seed=2"
    assert record.summary is not None and record.summary.steps == 13
    assert list(record.rows) == list(range(1, 14))


def test_a_failed_run_says_why(runs: Path) -> None:
    record = record_of(runs / "diverged")
    assert record.error is not None and "training has diverged" in record.error and "\n" not in record.error


def test_evaluations_are_found(runs: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(runs / "deep/0.1-0", tmp_path / "run")
    for name in ("test-last", "val-best", "empty"):
        (directory / "eval" / name).mkdir(parents=True)
    for name in ("test-last", "val-best"):
        (directory / "eval" / name / "eval.json").write_text("{}")
    assert [path.name for path in record_of(directory).evaluations] == ["test-last", "val-best"]


# -------------------------------------------------------------------------------------------------------------- status


def test_a_run_that_was_killed_is_interrupted(cut: Callable[..., Path]) -> None:
    record = record_of(cut())
    assert record.status == "interrupted"
    assert record.progress is not None
    assert (record.progress.step, record.progress.total_steps) == (9, 13)


def test_a_run_whose_lock_is_held_is_running_and_nothing_is_written(cut: Callable[..., Path]) -> None:
    directory = cut()
    with lock(directory):
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}
        assert record_of(directory).status == "running"
        after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}
        assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {
            directory / ".lock"  # whose holder gives signs of life
        }
    assert record_of(directory).status == "interrupted"


def test_a_finished_run_that_was_made_longer_and_killed_is_interrupted(runs: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(runs / "deep/0.1-0", tmp_path / "run")
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace("\nepochs: 2\n", "\nepochs: 4\n"))
    assert record_of(directory).status == "interrupted"


def test_a_failed_run_that_went_on_and_was_killed_is_interrupted(runs: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(runs / "diverged", tmp_path / "run")
    shutil.copy(runs / "deep/0.1-0/checkpoints/step-00000013.pt", directory / "checkpoints")
    assert (record_of(directory).status, record_of(directory).error) == ("interrupted", None)


def test_a_directory_in_which_nothing_has_begun_is_waiting(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    Invocation([], ["optim.lr=0.3", "seed=4"]).write(tmp_path / "job")
    record = record_of(tmp_path / "job")
    assert (record.status, record.config, record.overrides) == ("waiting", {}, ["optim.lr=0.3", "seed=4"])
    with lock(tmp_path / "job"):
        assert record_of(tmp_path / "job").status == "running"


def test_a_run_that_loads_its_data_has_no_configuration_yet(tmp_path: Path) -> None:
    with lock(tmp_path):
        (tmp_path / "train.log").touch()
        (record,) = find([str(tmp_path)])
        assert (record.status, record.config) == ("running", {})
        assert record.progress is not None and record.progress.step == 0
    assert read(tmp_path) is None, "it never began"


def test_a_job_that_failed_before_its_first_step(tmp_path: Path) -> None:
    Invocation([], ["seed=4"]).write(tmp_path)
    begun = "2026-11-26 12:00:00,000 INFO loading PyTorch\n"
    failed = "2026-11-26 12:00:01,000 ERROR failed: the data are not there\nTraceback (most recent call last):\n  ...\n"
    (tmp_path / "train.log").write_text(begun + failed)
    assert (record_of(tmp_path).status, record_of(tmp_path).error) == ("failed", "the data are not there")
    (tmp_path / "train.log").write_text(begun + failed + begun)
    assert record_of(tmp_path).status == "waiting", "it was started once more"


@pytest.mark.slow
def test_a_process_at_work_and_after_its_death(shell: Shell, tiny_overrides: tuple[str, ...]) -> None:
    process = shell.start(*tiny_overrides, "epochs=100000", "hydra.run.dir=run", "log_every=1")
    shell.wait_for("run/checkpoints/step-00000007.pt", process)
    record = record_of(shell.folder / "run")
    assert record.status == "running" and record.progress is not None
    assert record.progress.step > 0 and record.progress.total_steps == 625_000
    assert record.progress.images_per_second and record.progress.seconds_left
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert record_of(shell.folder / "run").status == "interrupted"


# ------------------------------------------------------------------------------------------------------ what is broken


def test_what_is_corrupt_is_read_from_the_checkpoint(runs: Path, cut: Callable[..., Path]) -> None:
    directory = cut()
    for name in ("config.yaml", "invocation.json", "summary.json"):
        (directory / name).write_text("{broken")
    record, whole = record_of(directory), record_of(runs / "deep/0.1-0")
    assert (record.status, record.summary) == ("interrupted", None)
    assert (record.config, record.overrides, record.precision) == (whole.config, whole.overrides, "fp32")


def test_a_strangers_numbers_end_no_report(cut: Callable[..., Path]) -> None:
    directory = cut()
    config = (directory / "config.yaml").read_text()
    for epochs in ("1" + "0" * 400, "-1", "text", "1e999", "[1, 2]"):
        (directory / "config.yaml").write_text(config.replace("\nepochs: 2\n", f"\nepochs: {epochs}\n"))
        progress = record_of(directory).progress
        assert progress is not None and progress.total_steps is None
    (directory / "metrics.csv").write_text(
        "step,...\n5,nan,inf,,,,,,inf,nan\n9,1e-300,,,,,,,,\n" + "7" * 300 + ",1,,,,,,,,\n"
    )
    progress = record_of(directory).progress
    assert progress is not None and (progress.step, progress.epoch, progress.accuracy) == (9, None, None)


def test_other_programs_files_are_no_runs(tmp_path: Path, cut: Callable[..., Path]) -> None:
    for place in ("a", ".hydra", "b"):
        (tmp_path / place).mkdir()
    (tmp_path / "a" / "config.yaml").write_text("db:\n  user: me\n")
    (tmp_path / "b" / "config.yaml").symlink_to(cut() / "config.yaml")
    cut(".hydra/run")
    (tmp_path / "link").symlink_to(tmp_path / "cut")
    assert [record.directory.name for record in find([str(tmp_path)])] == ["cut"]
    assert [record.directory.name for record in find([str(tmp_path / "link")])] == ["link"], "unless it is named"


# -------------------------------------------------------------------------------------------------------------- errors


def test_paths_that_hold_nothing(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in {
        "nowhere": r"expected a run directory or a folder of runs, got '.*nowhere', which does not exist$",
        "empty": r"expected runs of resnet-train below '.*empty', found none; run directories look like outputs/",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find([str(runs), str(tmp_path / path)] if path == "nowhere" else [str(tmp_path / path)])
    with pytest.raises(ConfigError, match=r"got the file '.*metrics.csv'; name its folder$"):
        find([str(runs / "deep/0.1-0/metrics.csv")])


def test_latest(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="latest: expected a run under 'outputs', found none; name its directory"):
        find(["latest"])
    for number, name in enumerate(("day/second", "first")):
        directory = shutil.copytree(runs / "deep/0.1-0", tmp_path / "outputs" / name)
        for path in directory.iterdir():
            os.utime(path, (1e9 - number, 1e9 - number))
    assert latest() == tmp_path / "outputs/day/second"
    assert [record.directory for record in find(["latest"])] == [latest()]


def test_a_summary_with_a_time_beyond_all_times(runs: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(runs / "deep/0.1-0", tmp_path / "run")
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(
        json.dumps(summary | {"total_seconds": 1e300, "images_per_second": float("nan")})
    )
    from resnet_train.commands.report.metrics import METRICS

    record = record_of(directory)
    assert record.status == "finished"
    assert METRICS["time"].of(record) is None and METRICS["images_per_second"].of(record) is None
