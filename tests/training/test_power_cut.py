"""Runs that end at a bad moment: the checkpoint alone says what the run is, how far it is, and what it measured."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import re
import shutil
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_train.cli.main import main
from resnet_train.cli.overrides import merge_overrides
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.directory import lock, read_config, read_invocation, write_config
from resnet_train.runs.resume import finished_already, latest
from resnet_train.runs.saved import saved_config
from resnet_train.runs.summary import read_summary
from resnet_train.train import run
from resnet_train.training.clock import Clock
from resnet_train.training.session import open_session
from resnet_train.training.setup import build
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]
Events = Callable[[Path], EventAccumulator]
CutBack = Callable[..., Path]
AssertSame = Callable[[Any, Any], None]

LENGTH = ("epochs=null", "steps=12", "dataset.val_size=40", "log_every=2", "eval_every=4steps", "name=cut")
SAVED = ("checkpoint.every=2steps", "checkpoint.keep=100")
COPIES = ("config.yaml", "invocation.json", "summary.json", "metrics.csv", "events")
FAULTS = ("removed", "empty", "truncated", "zeros")


def spoil(directory: Path, name: str, fault: str) -> None:
    """What a power failure leaves of a file whose bytes were not on the disk yet."""
    for path in directory.glob(f"{name}*"):
        whole = path.read_bytes()
        if fault == "removed":
            path.unlink()
        else:
            kept = whole[: 0 if fault == "empty" else len(whole) // 3]
            path.write_bytes(kept + (bytes(len(whole) - len(kept)) if fault == "zeros" else b""))


def subsets() -> list[tuple[str, ...]]:
    """Every file alone, and all of them, with each fault; other subsets with faults drawn at random."""
    drawn = random.Random(0)
    found = [tuple(fault if name == one else "" for name in COPIES) for one in COPIES for fault in FAULTS]
    found += [(fault,) * len(COPIES) for fault in FAULTS]
    for chosen in itertools.product((False, True), repeat=len(COPIES)):
        if 1 < sum(chosen) < len(COPIES):
            found.append(tuple(drawn.choice(FAULTS) if one else "" for one in chosen))
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    assert main([*TINY, *LENGTH, *SAVED, f"hydra.run.dir={directory}"], run) == 0
    return directory


def scalars(found: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if not tag.startswith("throughput")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(
            faults, id="-".join(fault or "whole" for fault in faults), marks=[pytest.mark.thorough] * (number % 3 > 0)
        )
        for number, faults in enumerate(subsets())
    ],
)
def test_every_file_but_the_checkpoints_may_be_lost(
    straight: Path, tmp_path: Path, cut_back: CutBack, events: Events, assert_same: AssertSame, faults: tuple[str, ...]
) -> None:
    directory = cut_back(straight, tmp_path / "run", step=6)
    shutil.copyfile(straight / "summary.json", directory / "summary.json")
    for name, fault in zip(COPIES, faults, strict=True):
        if fault:
            spoil(directory, name, fault)
    assert main([f"resume={directory}"], run) == 0
    assert (directory / "metrics.csv").read_bytes() == (straight / "metrics.csv").read_bytes()
    states = [read_checkpoint(path / "checkpoints/step-00000012.pt")["state"] for path in (straight, directory)]
    assert_same(*states)
    assert scalars(events(directory)) == scalars(events(straight))
    assert read_config(directory) == read_config(straight)
    kept = [merge_overrides([], read_invocation(path).overrides) for path in (straight, directory)]
    assert kept[0] == kept[1]
    results = [read_summary(path) for path in (straight, directory)]
    assert results[0] and results[1] and (results[0].result, results[0].last) == (results[1].result, results[1].last)
    assert results[1].sessions == 2
    log = (directory / "train.log").read_text()
    for name, fault in zip(COPIES[:3], faults[:3], strict=True):
        told = re.search(f"{name} was {'missing' if fault == 'removed' else 'corrupt( or old)?'}: written anew", log)
        assert bool(told) == bool(fault and (name, fault) != ("summary.json", "removed")), name
    assert ("rows of" in log) == bool(faults[3])


@pytest.mark.slow
def test_a_finished_run_keeps_its_last_row(straight: Path, tmp_path: Path, tiny: Tiny) -> None:
    """The score of the best weights is measured after the last checkpoint; a longer run still has it."""
    directory = shutil.copytree(straight, tmp_path / "run")
    run(tiny(*LENGTH, *SAVED, "steps=14"), directory=directory)
    rows = (directory / "metrics.csv").read_text().splitlines()
    assert rows[: len((straight / "metrics.csv").read_text().splitlines())][-1].startswith("12,")
    assert (straight / "metrics.csv").read_text().splitlines()[-1] == rows[6]


@pytest.mark.slow
def test_numbers_are_on_disk_before_the_summary_says_that_the_run_finished(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would write them again then. Until then the checkpoints hold them too."""
    order: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(f"to {new}"), rename(old, new)))
    run(tiny("epochs=null", "steps=2"), directory=tmp_path)
    (events,) = tmp_path.glob("events*")
    names = [name.replace(f"{tmp_path}/", "") for name in order]
    finished = names.index("to summary.json")
    assert {"metrics.csv", events.name} <= set(names[names.index("to checkpoints/step-00000002.pt") : finished])
    assert names[-1] == str(tmp_path)


@pytest.mark.slow
def test_a_file_system_that_cannot_sync_folders(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def without_folders(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(file)

    monkeypatch.setattr(os, "fsync", without_folders)
    assert run(tiny("epochs=null", "steps=2"), directory=tmp_path).status == "finished"


# ------------------------------------------------------------------------------------------------------ another length


def begin(config: Config, directory: Path) -> None:
    """What a process does that is killed before its first step."""
    with lock(directory) as held:
        session = open_session(build(config), config, directory, lock=held, clock=Clock(), command="", invocation=None)
        session.checkpoints.finish()
        session.tensorboard.close("failed")


@pytest.mark.slow
@pytest.mark.parametrize("copied", [True, False], ids=["config.yaml written", "killed before that"])
def test_a_run_that_was_made_longer_and_killed_is_the_longer_run(tiny: Tiny, tmp_path: Path, copied: bool) -> None:
    directory = tmp_path / "outputs" / "run"
    short, long = tiny("epochs=null", "steps=8", "log_every=2"), tiny("epochs=null", "steps=12", "log_every=2")
    run(short, directory=directory)
    begin(long, directory)
    if not copied:
        write_config(short, directory)
    assert saved_config(directory) == asdict(long)
    assert finished_already(long, directory) is None
    assert latest(tmp_path / "outputs") == directory
    assert main([f"resume={directory}"], run) == 0
    found = finished_already(long, directory)
    assert found is not None
    assert (found.steps, found.total_steps) == (12, 12)
    with pytest.raises(ConfigError, match="expected an unfinished run"):
        latest(tmp_path / "outputs")


@pytest.mark.slow
def test_what_was_forced_before_a_kill_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1"), directory=tmp_path)
    begin(tiny("epochs=2", "optim.lr=0.05", "resume_force=true"), tmp_path)
    with pytest.raises(ConfigError, match=r"optim\.lr: saved 0\.05, requested 0\.1"):
        run(tiny("epochs=2"), directory=tmp_path)
    begin(tiny("epochs=2", "optim.lr=0.05", "log_every=7"), tmp_path)
    result = run(tiny("epochs=2", "optim.lr=0.05"), directory=tmp_path)
    assert (result.steps, result.forced) == (13, ["after 7 steps: optim.lr: saved 0.1, requested 0.05"])


def test_a_run_that_goes_on_as_it_was_writes_no_checkpoint_first(
    straight: Path, tmp_path: Path, cut_back: CutBack, tiny: Tiny
) -> None:
    directory = cut_back(straight, tmp_path / "run", step=6)
    before = (directory / "checkpoints/step-00000006.pt").stat().st_mtime_ns
    begin(tiny(*LENGTH, *SAVED), directory)
    assert (directory / "checkpoints/step-00000006.pt").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [("epochs=null", "steps=1000"), ("epochs=null", "steps=1000", "optim.lr=0.05", "resume_force=true")]
)
def test_a_finished_run_is_made_longer_and_killed(shell: Shell, more: tuple[str, ...]) -> None:
    """By ``kill -9`` before its first new checkpoint; the same command continues, and so does ``resume=latest``."""
    assert shell.call(*TINY, "epochs=null", "steps=8", "hydra.run.dir=outputs/run")[0] == 0
    started = shell.start("resume=outputs/run", *more, "checkpoint.every=900steps", "log_every=1")
    table = shell.folder / "outputs/run/metrics.csv"
    while started.poll() is None and not any(line.startswith("50,") for line in table.read_text().splitlines()):
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    for resume in ("outputs/run", "latest"):
        started = shell.start(f"resume={resume}", *(more[:-1] if "resume_force=true" in more else more), "log_every=1")
        out = ""
        with contextlib.suppress(StopIteration):
            while "step" not in out:
                out += next(started.stdout)  # type: ignore[arg-type]
        os.kill(started.pid, signal.SIGKILL)
        assert "resuming from" in out and "8 steps are done" in out, (out, started.communicate())
        assert "finished already" not in out
        started.communicate()


# ---------------------------------------------------------------------------------------------------------- left behind


@pytest.mark.slow
def test_temporary_files_of_killed_processes_are_removed(
    straight: Path, tmp_path: Path, cut_back: CutBack, tiny: Tiny
) -> None:
    directory = cut_back(straight, tmp_path / "run", step=6)
    left = [
        directory / "checkpoints" / ".step-00000008.pt.4242.tmp",  # of version 0.1
        directory / "checkpoints" / ".last.pt.4242-0123456789abcdef.tmp",
        directory / ".metrics.csv.4242-0123456789abcdef.tmp",
    ]
    for path in left:
        path.write_bytes(b"half")
    with pytest.raises(ConfigError, match="would be another run"):
        run(tiny(*LENGTH, *SAVED, "seed=1"), directory=directory)
    assert all(path.exists() for path in left), "a request that is refused changes nothing"
    run(tiny(*LENGTH, *SAVED), directory=directory)
    assert not list(directory.rglob("*.tmp"))


@pytest.mark.slow
def test_a_checkpoint_that_is_being_written_leaves_nothing(shell: Shell) -> None:
    """A process is killed while it writes, again and again, until it has left a temporary file."""
    overrides = (*TINY, "model.width=4", "epochs=null", "steps=100000", "checkpoint.every=1steps", "hydra.run.dir=run")
    for _ in range(20):
        started = shell.start(*overrides, stdout=-3, stderr=-3)
        folder = shell.folder / "run" / "checkpoints"
        while started.poll() is None and not (list(folder.glob("step-*.pt")) and list(folder.glob(".*.tmp"))):
            time.sleep(0.001)
        started.kill()
        started.communicate()
        if left := list(folder.glob(".*.tmp")):
            break
    assert left
    done = int(max(folder.glob("step-*.pt")).stem.partition("-")[2])
    assert shell.call("resume=run", f"steps={done + 1}")[0] == 0
    assert not list(folder.glob(".*.tmp"))
