"""Whole runs, in this process: one call each."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_train.config.run import Config
from resnet_train.config.store import options_of
from resnet_train.errors import ConfigError, RunError
from resnet_train.runs.checkpoint import Checkpoints, read_checkpoint
from resnet_train.runs.directory import is_run, read_config
from resnet_train.runs.summary import read_summary
from resnet_train.train import run
from resnet_train.training.loop import at_rest
from resnet_train.training.setup import build

Tiny = Callable[..., Config]
Rows = Callable[[Path], list[dict[str, str]]]
Events = Callable[[Path], EventAccumulator]
CutBack = Callable[..., Path]
AssertSame = Callable[[Any, Any], None]


@pytest.mark.slow
def test_a_run_leaves_everything_behind(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=2", "name=whole")
    result = run(config, directory=tmp_path / "run", command="resnet-train whole")
    directory = tmp_path / "run"

    assert result.status == "finished"
    assert result.steps == result.total_steps == 13  # ceil(2 * 200 / 32)
    assert result.result_split == "test"
    assert result.result == result.objective == result.last["test"].accuracy
    assert result.last["test"].count == 50
    assert result.last["test"].error == 1 - result.last["test"].accuracy
    assert result.last["train"].count == 6 * 32  # steps 8 to 13
    assert result.last["train"].correct == round(result.last["train"].accuracy * 192)
    assert result.images == {"train": 200, "test": 50}
    assert result.parameters == sum(parameter.numel() for parameter in build(config).state.model.parameters())
    assert result.precision == "fp32"
    assert result.seed == 0
    assert result.command == "resnet-train whole"
    assert result.train_seconds > 0
    assert result.total_seconds > result.train_seconds
    assert result.images_per_second == pytest.approx(13 * 32 / result.train_seconds)
    assert result.peak_memory_bytes > 1e6
    assert {"python", "torch", "resnet-train"} <= result.versions.keys()
    assert read_summary(directory) == result
    assert json.loads((directory / "summary.json").read_text())["name"] == "whole"

    assert is_run(directory)
    names = {path.name for path in directory.iterdir()}
    assert {"config.yaml", "metrics.csv", "summary.json", "train.log", "checkpoints"} <= names
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {
        "last.pt",
        "step-00000007.pt",
        "step-00000013.pt",
    }
    assert read_config(directory)["batch_size"] == 32  # type: ignore[index]
    log = (directory / "train.log").read_text()
    assert "epoch 1/2, step 7" in log
    assert "epoch 2/2, step 13" in log


@pytest.mark.slow
def test_metrics_table(tiny: Tiny, tmp_path: Path, rows: Rows) -> None:
    result = run(tiny("epochs=2"), directory=tmp_path)
    table = rows(tmp_path)
    assert [int(row["step"]) for row in table] == [5, 7, 10, 13]  # log_every=5; epochs end with steps 7 and 13
    assert [bool(row["loss/test"]) for row in table] == [False, True, False, True]
    assert [bool(row["loss/train"]) for row in table] == [True, False, True, True]
    assert float(table[-1]["accuracy/test"]) == pytest.approx(result.last["test"].accuracy)
    assert float(table[-1]["epoch"]) == pytest.approx(13 * 32 / 200)
    assert float(table[0]["lr"]) == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 4 / 13)))


@pytest.mark.slow
def test_tensorboard_shows_the_table_on_one_axis(tiny: Tiny, tmp_path: Path, rows: Rows, events: Events) -> None:
    run(tiny("epochs=2"), directory=tmp_path)
    found = events(tmp_path)
    table = rows(tmp_path)
    tags = set(found.Tags()["scalars"])
    assert tags == {
        "loss/train",
        "accuracy/train",
        "loss/test",
        "accuracy/test",
        "training/lr",
        "training/epoch",
        "training/gradient_norm",
        "throughput/images_per_second",
    }
    for tag in tags - {"throughput/images_per_second"}:
        column = tag.removeprefix("training/")
        written = {int(row["step"]): float(row[column]) for row in table if row[column]}
        assert {event.step: event.value for event in found.Scalars(tag)} == pytest.approx(written, rel=1e-6), tag
        assert len(found.Scalars(tag)) == len(written), tag
    assert found.Tags()["images"] == ["augmented training images"]
    assert found.Tags()["tensors"] == ["config/text_summary", "custom_scalars__config__"]
    assert b"optim:\n  name: sgd\n  lr: 0.1\n" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_seeds(tiny: Tiny, tmp_path: Path) -> None:
    written = {}
    for name, seed in (("zero", 0), ("zero again", 0), ("one", 1)):
        run(tiny("epochs=1", f"seed={seed}"), directory=tmp_path / name)
        written[name] = (tmp_path / name / "metrics.csv").read_bytes()
    assert written["zero"] == written["zero again"]
    assert written["zero"] != written["one"]


# A learning rate that ruins the network in the last ten steps makes the best checkpoint an earlier one.
RUINED_LATE = (
    "schedule=multistep",
    "schedule.milestones=[40steps]",
    "schedule.gamma=300",
    "optim.momentum=0",
    "optim.nesterov=false",
    "dataset.num_test=200",
    "dataset.augment.flip=false",
)


@pytest.mark.slow
def test_with_a_validation_split_the_best_weights_are_scored_once(tiny: Tiny, tmp_path: Path, rows: Rows) -> None:
    config = tiny("epochs=null", "steps=50", "eval_every=10steps", "dataset.val_size=50", *RUINED_LATE)
    result = run(config, directory=tmp_path)
    assert [bool(row["accuracy/test"]) for row in rows(tmp_path)].count(True) == 1
    best = result.best["val"]
    assert best.step <= 40
    assert best.accuracy > result.last["val"].accuracy
    assert result.last["test"].step == best.step
    assert result.objective == best.accuracy
    assert result.result == result.last["test"].accuracy
    assert result.result_rule == (
        f"of the weights that were best on the validation split (after {best.step} steps), scored once"
    )
    saved = read_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert saved["state"]["step"] == best.step
    assert result.images == {"train": 150, "val": 50, "test": 200}


@pytest.mark.slow
def test_without_one_the_last_epoch_is_the_result_not_the_best(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=null", "steps=50", "eval_every=10steps", *RUINED_LATE)
    result = run(config, directory=tmp_path)
    assert result.best["test"].accuracy > result.last["test"].accuracy
    assert result.result == result.last["test"].accuracy
    assert result.result_rule == "after the last of 50 steps"
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=null", "steps=40", "optim.lr=1e30", "checkpoint.every=1steps")
    with pytest.raises(RunError, match=r"^the (loss|gradient's norm) is (nan|inf) at step \d+: training has diverged"):
        run(config, directory=tmp_path)
    found = read_summary(tmp_path)
    assert found is not None
    assert found.status == "failed"
    assert found.error is not None
    assert "training has diverged" in found.error
    newest = Checkpoints(tmp_path / "checkpoints", keep=2).newest()
    assert newest is not None
    weights = newest[1]["state"]["model"].values()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert "Traceback" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.usefixtures("compiler")
def test_statistics_that_are_not_finite_stop_the_run(tiny: Tiny, tmp_path: Path, optim: str, kernels: str) -> None:
    """The loss stays a number while the statistics of batch norm, or the second moments of AdamW, do not."""
    lr = {"sgd": 100, "adamw": 1e4}[optim]
    config = tiny("epochs=8", f"optim={optim}", f"optim.lr={lr}", "model.width=1", f"kernels={kernels}")
    with pytest.raises(
        RunError, match=r"^\S*(running_var|running_mean| of \S*) is not finite at step \d+: training has d"
    ):
        run(config, directory=tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints", keep=2).newest()
    assert newest is not None
    assert all(torch.isfinite(values).all() for values in newest[1]["state"]["model"].values())


@pytest.mark.slow
def test_a_result_that_is_no_number_is_no_result(tiny: Tiny, tmp_path: Path) -> None:
    """One step at 1e25: weights and statistics are finite, and the logits of the test images are not."""
    config = tiny("epochs=null", "steps=1", "optim.lr=1e25")
    for _ in range(2):  # and again when it is resumed
        with pytest.raises(RunError, match=r"^the loss on the test split is (nan|inf) at step 1: training has div"):
            run(config, directory=tmp_path)
        found = read_summary(tmp_path)
        assert found is not None
        assert (found.status, found.result) == ("failed", None)


@pytest.mark.slow
def test_run_makes_a_directory_of_its_own(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = [run(tiny("epochs=null", "steps=1", "name=mine")) for _ in range(2)]
    directories = [Path(result.directory) for result in results]
    assert directories[0] != directories[1]
    assert all(directory.parent.parent == tmp_path / "outputs" for directory in directories)
    assert all("-mine" in directory.name for directory in directories)


def test_the_gpu_that_was_asked_for_is_made_the_current_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is asked of it, such as whether it multiplies bf16: PyTorch would answer for the first one."""

    class Entered(Exception):
        pass

    def enter(device: torch.device) -> None:
        raise Entered(str(device))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", enter)
    with pytest.raises(Entered, match=r"^cuda:1$"):
        run(tiny("device=cuda:1", "precision=auto"), directory=tmp_path)


@pytest.mark.slow
def test_a_second_run_in_one_process_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would draw from the generators of the first; that one is what it is alone, and so is the next."""
    monkeypatch.chdir(tmp_path)
    config = tiny("epochs=null", "steps=100", "model.dropout=0.5", "log_every=1")
    expected = (run(config, directory=tmp_path / "alone"), (tmp_path / "alone/metrics.csv").read_bytes())
    with ThreadPoolExecutor() as threads:
        first = threads.submit(run, config, directory=tmp_path / "first")
        while not (tmp_path / "first/checkpoints/last.pt").exists():
            assert not first.done()
            time.sleep(0.001)
        with pytest.raises(ConfigError, match=r"^run: expected no other run in this process, .* start a process for e"):
            run(config)
        assert not first.done()
        results = [first.result(), run(config, directory=tmp_path / "third")]
    assert not (tmp_path / "outputs").exists(), "nothing is left of the one that was refused"
    for name, result in zip(("first", "third"), results, strict=True):
        assert ((tmp_path / name / "metrics.csv").read_bytes(), result.last) == (expected[1], expected[0].last)
        assert (tmp_path / name / "train.log").read_text().count("directory") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_the_layout_changes_nothing_but_rounding(tiny: Tiny, tmp_path: Path, rows: Rows) -> None:
    losses = []
    for choice in ("true", "false"):
        run(
            tiny("epochs=null", "steps=8", "log_every=1", "kernels=plain", f"channels_last={choice}"),
            directory=tmp_path / choice,
        )
        losses.append([float(row["loss/train"]) for row in rows(tmp_path / choice)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)


def test_the_collector_of_cycles_looks_at_new_objects_alone() -> None:
    """While a run lasts; what the process has set apart itself stays so."""
    gc.unfreeze()
    try:
        with at_rest():
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()
    with at_rest():
        pass
    assert gc.get_freeze_count() > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_is_the_same_training_and_resumes_bit_for_bit(
    tiny: Tiny, tmp_path: Path, rows: Rows, cut_back: CutBack, caplog: pytest.LogCaptureFixture
) -> None:
    length = ("epochs=null", "steps=8", "checkpoint.every=1steps", "checkpoint.keep=100", "log_every=1")
    plain = run(tiny(*length, "kernels=plain"), directory=tmp_path / "plain")
    with caplog.at_level("INFO"):
        straight = run(tiny(*length, "compile=true"), directory=tmp_path / "straight")
    assert (plain.compiled, straight.compiled, straight.kernels) == (False, True, "plain")
    assert "first step, with all that is set up then, in " in caplog.text
    losses = [[float(row["loss/train"]) for row in rows(tmp_path / name)] for name in ("plain", "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)
    run(tiny(*length, "compile=true"), directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=3))
    finals = [
        read_checkpoint(tmp_path / name / "checkpoints" / "step-00000008.pt")["state"]["model"]
        for name in ("straight", "resumed")
    ]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    assert list(finals[0]) == list(finals[1])
    assert not any("_orig_mod" in name for name in finals[0]), "names are the network's own"


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "quick")) for name in options_of("experiment")],
)
def test_every_recipe_makes_two_steps(compose: Callable[..., Config], cifar10_root: Path, recipe: str) -> None:
    config = compose(
        f"experiment={recipe}", f"dataset.root={cifar10_root}", "batch_size=2", "dataset.train_size=64", "device=cpu"
    )
    built = build(config)
    losses = []
    for step in range(2):
        images, labels = built.train_data.batch(step)
        losses.append(built.train_step(images, labels, lr=built.lr_schedule(step)).loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert built.state.step == 2
    if recipe.startswith("he2015"):
        assert built.timetable.total_steps == 64_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "depth", "first_above", "loss_below", "accuracy_above", "images"),
    [
        ("cifar10", 8, 1.7, 1.65, 0.4, 12_800),
        ("fashion_mnist", 20, 1.0, 0.5, 0.8, 60_000),
    ],
    ids=["cifar10", "fashion_mnist"],
)
def test_an_epoch_on_real_images_learns_what_it_must(
    compose: Callable[..., Config],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    rows: Rows,
    dataset: str,
    depth: int,
    first_above: float,
    loss_below: float,
    accuracy_above: float,
    images: int,
) -> None:
    """An epoch with the peak learning rate of experiment=quick; guessing gives a loss of ln 10 = 2.30.

    Of CIFAR-10 it is a quarter, with a smaller network. Fashion-MNIST's images are Debian's, of one channel, and of
    28x28: an odd size on its way through the network.
    """
    config = compose(
        "experiment=quick",
        f"model.depth={depth}",
        f"dataset={dataset}",
        f"dataset.root={request.getfixturevalue(f'{dataset}_root')}",
        f"dataset.train_size={images}",
        "epochs=1",
        "schedule.warmup=0.3",
        "device=cpu",
        "eval_every=1",
    )
    result = run(config, directory=tmp_path)
    first, *_, last = [float(row["loss/train"]) for row in rows(tmp_path) if row["loss/train"]]
    assert first > first_above
    assert last < loss_below
    assert result.last["test"].loss < loss_below
    assert result.last["test"].accuracy > accuracy_above
    assert result.last["test"].count == 10_000
    assert result.images == {"train": images, "test": 10_000}
