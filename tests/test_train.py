"""Whole runs, in this process: one call each."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_train import checkpoint, rundir, summary
from resnet_train.build import build_state
from resnet_train.config.run import Config
from resnet_train.config.store import options_of
from resnet_train.errors import ConfigError, RunError
from resnet_train.loop import prepare
from resnet_train.train import run

Tiny = Callable[..., Config]


def rows(directory: Path) -> list[dict[str, str]]:
    with open(directory / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def cut_back(source: Path, target: Path, *, step: int) -> Path:
    """What a machine that lost power just after the checkpoint of ``step`` leaves behind, later rows included."""
    shutil.copytree(source, target)
    (target / summary.FILE).unlink()
    for path in (target / "checkpoints").glob("*.pt"):
        if path.name in ("last.pt", "best.pt") or int(path.stem.partition("-")[2]) > step:
            path.unlink()
    return target


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Equal to the last bit, whatever the nesting."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert left == right, where


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
    assert result.last["train"].count == 6 * 32  # updates 8 to 13
    assert result.last["train"].correct == round(result.last["train"].accuracy * 192)
    assert result.images == {"train": 200, "test": 50}
    assert result.parameters == sum(p.numel() for p in build_state_parameters(config))
    assert result.precision == "fp32"
    assert result.seed == 0
    assert result.command == "resnet-train whole"
    assert result.train_seconds > 0
    assert result.total_seconds > result.train_seconds
    assert result.images_per_second == pytest.approx(13 * 32 / result.train_seconds)
    assert result.peak_memory_bytes > 1e6
    assert {"python", "torch", "resnet-train"} <= result.versions.keys()
    assert summary.read(directory) == result
    assert json.loads((directory / "summary.json").read_text())["name"] == "whole"

    names = {path.name for path in directory.iterdir()}
    assert {"config.yaml", "invocation.json", "metrics.csv", "summary.json", "train.log", "checkpoints"} <= names
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {
        "last.pt",
        "step-00000007.pt",
        "step-00000013.pt",
    }
    assert rundir.read_config(directory)["batch_size"] == 32  # type: ignore[index]
    log = (directory / "train.log").read_text()
    assert "epoch 1/2, update 7" in log
    assert "epoch 2/2, update 13" in log


def build_state_parameters(config: Config) -> list[torch.nn.Parameter]:
    state = build_state(config, num_classes=10, device=torch.device("cpu"), precision="fp32")
    return list(state.model.parameters())


def test_metrics_table(tiny: Tiny, tmp_path: Path) -> None:
    result = run(tiny("epochs=2"), directory=tmp_path)
    table = rows(tmp_path)
    assert [int(row["step"]) for row in table] == [5, 7, 10, 13]  # log_every=5; epochs end with updates 7 and 13
    assert [bool(row["loss/test"]) for row in table] == [False, True, False, True]
    assert [bool(row["loss/train"]) for row in table] == [True, False, True, True]
    assert float(table[-1]["accuracy/test"]) == pytest.approx(result.last["test"].accuracy)
    assert float(table[-1]["epoch"]) == pytest.approx(13 * 32 / 200)
    assert float(table[0]["lr"]) == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 4 / 13)))


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()


def test_tensorboard_shows_the_table_on_one_axis(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=2"), directory=tmp_path)
    found = events(tmp_path)
    table = rows(tmp_path)
    tags = set(found.Tags()["scalars"])
    assert tags == {
        "loss/train",
        "accuracy/train",
        "loss/test",
        "accuracy/test",
        "lr",
        "epoch",
        "gradient_norm",
        "throughput/images_per_second",
    }
    for tag in tags - {"throughput/images_per_second"}:
        written = {int(row["step"]): float(row[tag]) for row in table if row[tag]}
        assert {event.step: event.value for event in found.Scalars(tag)} == pytest.approx(written, rel=1e-6), tag
        assert len(found.Scalars(tag)) == len(written), tag
    assert found.Tags()["images"] == ["augmented training images"]
    assert found.Tags()["tensors"] == ["config/text_summary"]
    assert b"optim.lr: 0.1" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize(
    "step", [pytest.param(7, marks=pytest.mark.slow), 9], ids=["end of an epoch", "middle of an epoch"]
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("schedule=linear", "schedule.warmup=1"), marks=pytest.mark.slow),
        ("optim=adamw", "ema_decay=0.9", "clip_grad_norm=1", "label_smoothing=0.1"),
        ("dataset.augment.mixup=0.3", "dataset.augment.cutmix=1", "dataset.augment.cutout=4", "model.dropout=0.2"),
        pytest.param(
            ("accumulate=2", "dataset.val_size=40", "optim.decay_norm_and_bias=false"), marks=pytest.mark.slow
        ),
        pytest.param(("model.width=1", "kernels=plain"), marks=pytest.mark.slow),
        ("model.width=1", "kernels=fused"),
        ("model.width=1", "kernels=fused", "precision=bf16", "model.shortcut=B"),
    ],
    ids=["sgd", "adamw", "mixing", "validation", "plain", "fused", "fused bf16"],
)
@pytest.mark.usefixtures("compiler")
def test_resume_is_bit_identical(tiny: Tiny, tmp_path: Path, options: tuple[str, ...], step: int) -> None:
    config = tiny("epochs=null", "steps=16", "checkpoint.every=1steps", "checkpoint.keep=100", *options)
    straight = run(config, directory=tmp_path / "straight")
    resumed = run(config, directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=step))

    finals = [
        checkpoint.read(tmp_path / name / "checkpoints" / "step-00000016.pt")["state"]
        for name in ("straight", "resumed")
    ]
    assert_equal(finals[0], finals[1])
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (tmp_path / "resumed/metrics.csv").read_bytes()
    assert (straight.last, straight.best, straight.result) == (resumed.last, resumed.best, resumed.result)
    assert resumed.sessions == 2
    left, right = events(tmp_path / "straight"), events(tmp_path / "resumed")
    for tag in set(left.Tags()["scalars"]) - {"throughput/images_per_second"}:
        assert [(event.step, event.value) for event in left.Scalars(tag)] == [
            (event.step, event.value) for event in right.Scalars(tag)
        ], tag


def test_a_run_cut_after_its_last_update_is_only_finished(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=null", "steps=8", "dataset.val_size=40", "checkpoint.every=2steps", "checkpoint.keep=9")
    straight = run(config, directory=tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    (tmp_path / "cut" / summary.FILE).unlink()
    resumed = run(config, directory=tmp_path / "cut")
    assert (resumed.result, resumed.last, resumed.best) == (straight.result, straight.last, straight.best)
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()
    left, right = events(tmp_path / "straight"), events(tmp_path / "cut")
    for tag in ("loss/val", "accuracy/test", "lr"):
        assert [(event.step, event.value) for event in left.Scalars(tag)] == [
            (event.step, event.value) for event in right.Scalars(tag)
        ], tag


def test_seeds(tiny: Tiny, tmp_path: Path) -> None:
    written = {}
    for name, seed in (("zero", 0), ("zero again", 0), ("one", 1)):
        run(tiny("epochs=1", f"seed={seed}"), directory=tmp_path / name)
        written[name] = (tmp_path / name / "metrics.csv").read_bytes()
    assert written["zero"] == written["zero again"]
    assert written["zero"] != written["one"]


# A rate that ruins the network in the last ten updates makes the best checkpoint an earlier one.
RUINED_LATE = (
    "schedule=multistep",
    "schedule.milestones=[40steps]",
    "schedule.gamma=300",
    "optim.momentum=0",
    "optim.nesterov=false",
    "dataset.num_test=200",
    "dataset.augment.flip=false",
)


def test_with_a_validation_split_the_best_weights_are_scored_once(tiny: Tiny, tmp_path: Path) -> None:
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
        f"of the weights that were best on the validation split (after {best.step} updates), scored once"
    )
    saved = checkpoint.read(tmp_path / "checkpoints" / "best.pt")
    assert saved["state"]["step"] == best.step
    assert result.images == {"train": 150, "val": 50, "test": 200}


def test_without_one_the_last_epoch_is_the_result_not_the_best(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=null", "steps=50", "eval_every=10steps", *RUINED_LATE)
    result = run(config, directory=tmp_path)
    assert result.best["test"].accuracy > result.last["test"].accuracy
    assert result.result == result.last["test"].accuracy
    assert result.result_rule == "after the last of 50 updates"
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=null", "steps=40", "optim.lr=1e30", "checkpoint.every=1steps")
    with pytest.raises(
        RunError, match=r"^the (loss|gradient's norm) is (nan|inf) at update \d+: training has diverged"
    ):
        run(config, directory=tmp_path)
    found = summary.read(tmp_path)
    assert found is not None
    assert found.status == "failed"
    assert found.error is not None
    assert "training has diverged" in found.error
    newest = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2).newest()
    assert newest is not None
    weights = newest[1]["state"]["model"].values()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert "Traceback" in (tmp_path / "train.log").read_text()


def test_finished_already(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=1")
    first = run(config, directory=tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert run(config, directory=tmp_path) == first
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_longer_run_goes_on_and_says_so(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tiny("epochs=1"), directory=tmp_path)
    with caplog.at_level(logging.INFO):
        result = run(tiny("epochs=2", "log_every=3"), directory=tmp_path)
    assert result.steps == 13
    assert result.sessions == 2
    assert "changed for the rest of this run: epochs: saved 1, requested 2" in caplog.text
    assert "changed for the rest of this run: log_every: saved 5, requested 3" in caplog.text
    steps = [int(row["step"]) for row in rows(tmp_path)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=16", "batch_size: saved 32, requested 16"),
        ("seed=1", "seed: saved 0, requested 1"),
        ("optim.lr=0.2", "optim.lr: saved 0.1, requested 0.2"),
        ("model.width=0.5", "model.width: saved 0.25, requested 0.5"),
        ("optim=adamw", "optim.beta1: saved null, requested 0.9"),
        ("dataset.augment.cutout=4", "dataset.augment.cutout: saved 0, requested 4"),
    ],
)
def test_another_run_is_refused(tiny: Tiny, tmp_path: Path, override: str, message: str) -> None:
    run(tiny("epochs=1"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"^resume: this would be another run") as caught:
        run(tiny("epochs=1", override), directory=tmp_path)
    assert message in str(caught.value)


@pytest.mark.slow
def test_precision_is_compared_by_what_it_means(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1", "precision=bf16"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"was trained in bf16, this would go on in fp32 .*; add precision=bf16$"):
        run(tiny("epochs=2", "precision=fp32"), directory=tmp_path)
    assert run(tiny("epochs=2", "precision=bf16"), directory=tmp_path).steps == 13


def test_a_shorter_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=2"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"has made 13 updates already, expected at most the 7 that are asked for"):
        run(tiny("epochs=1"), directory=tmp_path)
    saved = rundir.read_config(tmp_path)
    assert saved is not None
    assert saved["epochs"] == 2  # a refused request leaves no trace


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny("epochs=null", "steps=16", "checkpoint.every=1steps", "checkpoint.keep=100")
    run(config, directory=tmp_path / "straight")
    cut = cut_back(tmp_path / "straight", tmp_path / "cut", step=9)
    newest = cut / "checkpoints" / "step-00000009.pt"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    run(config, directory=cut)
    assert (
        "step-00000009.pt is damaged (its checksum does not fit its content); trying the one before it" in caplog.text
    )
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()


def test_run_makes_a_directory_of_its_own(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = [run(tiny("epochs=null", "steps=1", "name=mine")) for _ in range(2)]
    directories = [Path(result.directory) for result in results]
    assert directories[0] != directories[1]
    assert all(directory.parent.parent == tmp_path / "outputs" for directory in directories)
    assert all("-mine" in directory.name for directory in directories)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "quick")) for name in options_of("experiment")],
)
def test_every_recipe_makes_two_updates(
    compose: Callable[..., Config], cifar10_root: Path, tmp_path: Path, recipe: str
) -> None:
    config = compose(
        f"experiment={recipe}", f"dataset.root={cifar10_root}", "batch_size=2", "dataset.train_size=64", "device=cpu"
    )
    prepared = prepare(config, tmp_path, command="")
    try:
        losses = []
        for step in range(2):
            images, labels = prepared.train_data.batch(step)
            output = prepared.update(images, labels, lr=prepared.rate(step))
            losses.append(output.loss.item())
        assert all(math.isfinite(loss) for loss in losses)
        assert prepared.state.step == 2
        if recipe.startswith("he2015"):
            assert prepared.total_steps == 64_000
    finally:
        prepared.tensorboard.close("interrupted")


@pytest.mark.slow
def test_an_epoch_on_real_images_learns_what_it_must(
    compose: Callable[..., Config], cifar10_root: Path, tmp_path: Path
) -> None:
    """All of CIFAR-10, once, with the peak rate of experiment=quick; guessing gives a loss of ln 10 = 2.30."""
    config = compose(
        "experiment=quick",
        f"dataset.root={cifar10_root}",
        "epochs=1",
        "schedule.warmup=0.3",
        "device=cpu",
        "eval_every=1",
    )
    result = run(config, directory=tmp_path)
    first, *_, last = [float(row["loss/train"]) for row in rows(tmp_path) if row["loss/train"]]
    assert first > 1.7
    assert last < 1.25
    assert result.last["test"].loss < 1.25
    assert result.last["test"].accuracy > 0.55
    assert result.last["test"].count == 10_000
