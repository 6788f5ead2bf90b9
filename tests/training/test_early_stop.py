"""``early_stop``: a run that ends since its validation accuracy no longer rises, and what becomes of it afterwards."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.resume import finished_already
from resnet_train.runs.saved import is_over
from resnet_train.runs.summary import Summary, read_summary
from resnet_train.train import run
from resnet_train.training.setup import build
from resnet_train.training.state import Patience
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]
Rows = Callable[[Path], list[dict[str, str]]]
EVERY, PATIENCE, STEPS = 3, 4, 120
LONG = (
    "epochs=null",
    f"steps={STEPS}",
    f"eval_every={EVERY}steps",
    "dataset.val_size=40",
    "ema_decay=0.5",
    "optim=adamw",
)
KEPT = ("checkpoint.every=1steps", "checkpoint.keep=1000")
EARLY = f"early_stop.patience={PATIENCE}"


@pytest.fixture(scope="module")
def long(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole length."""
    directory = tmp_path_factory.mktemp("long")
    run(tiny(*LONG, *KEPT), directory=directory)
    return directory


@pytest.fixture(scope="module")
def stopped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """The same, stopped early."""
    directory = tmp_path_factory.mktemp("stopped")
    return directory, run(tiny(*LONG, *KEPT, EARLY), directory=directory)


@pytest.fixture(scope="module")
def expected(long: Path, rows: Rows) -> int:
    """Steps after which the long run had made `PATIENCE` evaluations without a rise: from its table alone."""
    scores = {int(row["step"]): float(row["accuracy/val"]) for row in rows(long) if row["accuracy/val"]}
    assert list(scores) == list(range(EVERY, STEPS + 1, EVERY))
    steps = list(scores)
    for index in range(PATIENCE, len(steps)):
        before = max(scores[step] for step in steps[: index - PATIENCE + 1])
        if all(scores[step] <= before for step in steps[index - PATIENCE + 1 : index + 1]):
            return steps[index]
    raise AssertionError(f"accuracies that rise for ever: {scores}")


def state_of(directory: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(directory / f"checkpoints/step-{step:08d}.pt")["state"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_it_stops_where_the_accuracy_has_not_risen(
    long: Path, stopped: tuple[Path, Summary], expected: int, rows: Rows, assert_same: Any
) -> None:
    """Until there it is the long run, bit for bit, its learning rates included."""
    directory, result = stopped
    assert PATIENCE * EVERY < expected < STEPS
    assert (result.status, result.steps, result.total_steps) == ("finished", expected, STEPS)
    assert (result.waited, result.stopped_early) == (PATIENCE, True)
    best = result.best["val"]
    assert best.step == expected - PATIENCE * EVERY
    assert (result.last["test"].step, result.objective) == (best.step, best.accuracy)
    assert result.result_rule == (
        f"of the weights that were best on the validation split (after {best.step} steps), scored once; "
        f"stopped early after {expected} of {STEPS} steps, {PATIENCE} evaluations without a rise"
    )
    assert f"stopped early after {expected} of {STEPS} steps" in (directory / "train.log").read_text()
    assert_same(state_of(directory, expected), state_of(long, expected))
    table = rows(directory)
    assert table[-1]["accuracy/test"]
    table[-1] |= {"accuracy/test": "", "loss/test": ""}
    assert table == rows(long)[: len(table)]


@pytest.mark.slow
def test_it_is_finished_and_left_alone(tiny: Tiny, stopped: tuple[Path, Summary], expected: int) -> None:
    directory, result = stopped
    config = tiny(*LONG, *KEPT, EARLY)
    assert is_over(directory)
    assert finished_already(config, directory) == result
    assert finished_already(replace(config, steps=expected), directory) == result, "as long as it is"
    message = (
        rf"^steps: expected the run in .* to wait longer, for it stopped early after {expected} of {STEPS} steps, with "
        rf"{PATIENCE} evaluations without a rise, and would stop again; add early_stop\.patience=null or more than 4 "
    )
    for longer in (replace(config, steps=500), replace(config, steps=expected + 1)):
        with pytest.raises(ConfigError, match=message):
            finished_already(longer, directory)
    for patience in ("null", "5"):
        assert finished_already(tiny(*LONG, *KEPT, f"early_stop.patience={patience}"), directory) is None
    assert finished_already(tiny(*LONG, *KEPT, "early_stop.patience=2"), directory) == result


def test_without_its_checkpoints_it_is_finished_all_the_same(
    tiny: Tiny, stopped: tuple[Path, Summary], tmp_path: Path
) -> None:
    directory = shutil.copytree(stopped[0], tmp_path / "run")
    shutil.rmtree(directory / "checkpoints")
    assert finished_already(tiny(*LONG, *KEPT, EARLY), directory) is not None
    assert finished_already(tiny(*LONG, *KEPT), directory) is None


@pytest.mark.slow
def test_with_more_patience_it_becomes_the_long_run(
    tiny: Tiny, long: Path, stopped: tuple[Path, Summary], tmp_path: Path, assert_same: Any
) -> None:
    directory = shutil.copytree(stopped[0], tmp_path / "run")
    result = run(tiny(*LONG, *KEPT), directory=directory)
    assert (result.steps, result.stopped_early) == (STEPS, False)
    assert "stopped" not in result.result_rule
    assert_same(state_of(directory, STEPS), state_of(long, STEPS))


@pytest.mark.slow
def test_killed_before_its_summary_it_is_only_finished(
    tiny: Tiny, stopped: tuple[Path, Summary], tmp_path: Path, events: Any
) -> None:
    directory = shutil.copytree(stopped[0], tmp_path / "run")
    (directory / "summary.json").unlink()
    assert not is_over(directory)
    result = run(tiny(*LONG, *KEPT, EARLY), directory=directory)
    assert (result.steps, result.last, result.best) == (stopped[1].steps, stopped[1].last, stopped[1].best)
    assert (directory / "metrics.csv").read_bytes() == (stopped[0] / "metrics.csv").read_bytes()
    left, right = events(stopped[0]), events(directory)
    for tag in ("loss/val", "accuracy/test", "training/lr"):
        assert [(event.step, event.value) for event in left.Scalars(tag)] == [
            (event.step, event.value) for event in right.Scalars(tag)
        ], tag


@pytest.mark.slow
@pytest.mark.parametrize("back", [1, PATIENCE * EVERY - 1])
def test_resumed_it_stops_at_the_same_step(
    tiny: Tiny, stopped: tuple[Path, Summary], expected: int, tmp_path: Path, cut_back: Any, assert_same: Any, back: int
) -> None:
    cut = cut_back(stopped[0], tmp_path / "cut", step=expected - back)
    shutil.copy(stopped[0] / "checkpoints/best.pt", cut / "checkpoints/best.pt")
    result = run(tiny(*LONG, *KEPT, EARLY), directory=cut)
    assert (result.steps, result.result) == (expected, stopped[1].result)
    assert_same(state_of(cut, expected), state_of(stopped[0], expected))
    assert (cut / "metrics.csv").read_bytes() == (stopped[0] / "metrics.csv").read_bytes()


def test_a_checkpoint_of_0_2_0_begins_to_count(tiny: Tiny) -> None:
    state = build(tiny("dataset.val_size=40")).state
    saved = state.state_dict()
    del saved["patience"]
    state.patience.waited = 3
    state.load_state_dict(saved)
    assert state.patience == Patience()


def test_what_counts_as_a_rise() -> None:
    patience = Patience()
    for accuracy, waited in ((0.5, 0), (0.509, 1), (0.51, 2), (0.52, 0), (0.52, 1), (0.1, 2), (0.9, 0)):
        patience.wait(accuracy, min_delta=0.01)
        assert patience.waited == waited, accuracy
    assert patience.best == 0.9
    patience = Patience()
    for accuracy, waited in ((0.0, 0), (0.0, 1), (0.001, 0)):
        patience.wait(accuracy, min_delta=0)
        assert patience.waited == waited


def test_a_data_set_without_a_validation_split(tiny: Tiny) -> None:
    """Where the configuration cannot know: folders of images."""
    config = tiny("dataset.val_size=40", "early_stop.patience=3")
    config.dataset.val_size = 0
    with pytest.raises(
        ConfigError, match=r"^early_stop\.patience: expected a validation split, .* got 3 without one; "
    ):
        build(config)


@pytest.mark.slow
def test_the_jobs_of_a_sweep_show_their_steps(shell: Shell) -> None:
    lists = ("freeze=[],[conv1,bn1]", "early_stop.patience=2,null")
    code, out, _ = shell.call("-m", *TINY, *LONG, *lists, "steps=60", "sweep=early")
    assert code == 0
    rows = [line.split() for line in shell.table(out)]
    assert [row[:3] for row in rows] == [
        [frozen, patience, "finished"] for frozen in ("[]", "[conv1,bn1]") for patience in ("2", "null")
    ]
    assert [int(row[3]) < 60 for row in rows] == [True, False] * 2
    first = [path.read_bytes() for path in sorted(shell.folder.rglob("summary.json"))]
    code, out, _ = shell.call("-m", *TINY, *LONG, *lists, "steps=60", "sweep=early")
    assert [line.split() for line in shell.table(out)] == rows
    assert [path.read_bytes() for path in sorted(shell.folder.rglob("summary.json"))] == first, "left alone"


@pytest.mark.slow
def test_a_killed_run_stops_at_the_same_step(tiny: Tiny, shell: Shell, assert_same: Any) -> None:
    words = (*LONG, EARLY, "checkpoint.every=1steps")
    straight = run(tiny(*words), directory=shell.folder / "straight")
    started = shell.start(*TINY, *words, "hydra.run.dir=cut")
    shell.wait_for(f"cut/checkpoints/step-{straight.steps // 2:08d}.pt", started)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    assert not (shell.folder / "cut/summary.json").exists()
    code, out, err = shell.call("resume=cut")
    assert (code, err) == (0, "")
    assert "resuming from" in out
    assert f"stopped early after {straight.steps} of {STEPS} steps" in out
    found = read_summary(shell.folder / "cut")
    assert found is not None
    assert (found.steps, found.waited, found.result) == (straight.steps, PATIENCE, straight.result)
    assert (shell.folder / "straight/metrics.csv").read_bytes() == (shell.folder / "cut/metrics.csv").read_bytes()
    assert_same(*(state_of(shell.folder / name, straight.steps) for name in ("straight", "cut")))

    assert out.endswith(f"resume={shell.folder / 'cut'} early_stop.patience=null   # train on\n")

    code, out, err = shell.call("resume=cut")
    assert (code, err, out.startswith("finished already: test accuracy ")) == (0, "", True)
    code, out, err = shell.call("resume=cut", "steps=500")
    assert (code, out) == (2, "")
    assert err.startswith("resnet-train: steps: expected the run in ")
    assert err.endswith("add early_stop.patience=null or more than 4 to continue it\n")
