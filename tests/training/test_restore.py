"""Continuing a run: the same numbers to the bit, and a refusal where it would be another run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.directory import is_run, read_config, read_invocation
from resnet_train.runs.resume import changes, finished_already
from resnet_train.train import run

Tiny = Callable[..., Config]
Rows = Callable[[Path], list[dict[str, str]]]
Events = Callable[[Path], EventAccumulator]
CutBack = Callable[..., Path]
AssertSame = Callable[[Any, Any], None]


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 9], ids=["end of an epoch", "middle of an epoch"])
@pytest.mark.parametrize(
    "options",
    [
        ("schedule=linear", "schedule.warmup=1"),
        ("optim=adamw", "ema_decay=0.9", "clip_grad_norm=1", "label_smoothing=0.1"),
        ("dataset.augment.mixup=0.3", "dataset.augment.cutmix=1", "dataset.augment.cutout=4", "model.dropout=0.2"),
        ("accumulate=2", "dataset.val_size=40", "optim.decay_norm_and_bias=false"),
        ("model.width=1", "kernels=plain"),
        ("model.width=1", "kernels=fused"),
        ("model.width=1", "kernels=fused", "precision=bf16", "model.shortcut=B"),
    ],
    ids=["sgd", "adamw", "mixing", "validation", "plain", "fused", "fused bf16"],
)
@pytest.mark.usefixtures("compiler")
def test_resume_is_bit_identical(
    tiny: Tiny,
    tmp_path: Path,
    events: Events,
    cut_back: CutBack,
    assert_same: AssertSame,
    options: tuple[str, ...],
    step: int,
) -> None:
    config = tiny("epochs=null", "steps=16", "checkpoint.every=1steps", "checkpoint.keep=100", *options)
    straight = run(config, directory=tmp_path / "straight")
    resumed = run(config, directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=step))

    finals = [
        read_checkpoint(tmp_path / name / "checkpoints" / "step-00000016.pt")["state"]
        for name in ("straight", "resumed")
    ]
    assert_same(finals[0], finals[1])
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (tmp_path / "resumed/metrics.csv").read_bytes()
    assert (straight.last, straight.best, straight.result) == (resumed.last, resumed.best, resumed.result)
    assert resumed.sessions == 2
    left, right = events(tmp_path / "straight"), events(tmp_path / "resumed")
    for tag in set(left.Tags()["scalars"]) - {"throughput/images_per_second"}:
        assert [(event.step, event.value) for event in left.Scalars(tag)] == [
            (event.step, event.value) for event in right.Scalars(tag)
        ], tag


@pytest.mark.slow
def test_a_run_cut_after_its_last_step_is_only_finished(tiny: Tiny, tmp_path: Path, events: Events) -> None:
    config = tiny("epochs=null", "steps=8", "dataset.val_size=40", "checkpoint.every=2steps", "checkpoint.keep=9")
    straight = run(config, directory=tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    resumed = run(config, directory=tmp_path / "cut")
    assert (resumed.result, resumed.last, resumed.best) == (straight.result, straight.last, straight.best)
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()
    left, right = events(tmp_path / "straight"), events(tmp_path / "cut")
    for tag in ("loss/val", "accuracy/test", "training/lr"):
        assert [(event.step, event.value) for event in left.Scalars(tag)] == [
            (event.step, event.value) for event in right.Scalars(tag)
        ], tag


@pytest.mark.slow
def test_finished_already(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("epochs=1")
    first = run(config, directory=tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert run(config, directory=tmp_path) == first
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_longer_run_continues_and_says_so(
    tiny: Tiny, tmp_path: Path, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny("epochs=1"), directory=tmp_path)
    with caplog.at_level(logging.INFO):
        result = run(tiny("epochs=2", "log_every=3"), directory=tmp_path)
    assert result.steps == 13
    assert result.sessions == 2
    assert "changed for the rest of this run: epochs: saved 1, requested 2" in caplog.text
    assert "changed for the rest of this run: log_every: saved 5, requested 3" in caplog.text
    steps = [int(row["step"]) for row in rows(tmp_path)]
    assert steps == sorted(set(steps))


@pytest.mark.slow
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
    with pytest.raises(ConfigError, match=r"was trained in bf16, this would continue in fp32 .*; add precision=bf16$"):
        run(tiny("epochs=2", "precision=fp32"), directory=tmp_path)
    assert run(tiny("epochs=2", "precision=bf16"), directory=tmp_path).steps == 13


@pytest.mark.slow
def test_a_shorter_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=2"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"has made 13 steps already, expected at most the 7 that are asked for"):
        run(tiny("epochs=1"), directory=tmp_path)
    saved = read_config(tmp_path)
    assert saved is not None
    assert saved["epochs"] == 2  # a refused request leaves no trace


@pytest.mark.slow
def test_a_corrupt_checkpoint_gives_way_to_the_one_before(
    tiny: Tiny, tmp_path: Path, cut_back: CutBack, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny("epochs=null", "steps=16", "checkpoint.every=1steps", "checkpoint.keep=100")
    run(config, directory=tmp_path / "straight")
    cut = cut_back(tmp_path / "straight", tmp_path / "cut", step=9)
    newest = cut / "checkpoints" / "step-00000009.pt"
    corrupt = bytearray(newest.read_bytes())
    corrupt[len(corrupt) // 2] ^= 1
    newest.write_bytes(corrupt)
    run(config, directory=cut)
    assert (
        "step-00000009.pt is corrupt (its checksum does not fit its content); trying the one before it" in caplog.text
    )
    assert (tmp_path / "straight/metrics.csv").read_bytes() == (cut / "metrics.csv").read_bytes()


RUN_0_1_0 = Path(__file__).parents[1] / "data" / "run-0.1.0"


@pytest.mark.slow
def test_a_run_of_version_0_1_0_continues(
    compose: Tiny, tmp_path: Path, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty steps were made by that version; its overrides, its checkpoint and its rows are all that there is."""
    directory = shutil.copytree(RUN_0_1_0, tmp_path / "run")
    before = rows(directory)
    saved, overrides = read_config(directory), read_invocation(directory).overrides
    config = compose(*overrides)
    assert is_run(directory)
    assert saved is not None
    assert changes(saved, config) == []
    finished = finished_already(config, directory)
    assert finished is not None
    assert (finished.steps, finished.result, finished.kernels) == (20, 0.06, "plain")
    with caplog.at_level("INFO"):
        result = run(replace(config, steps=30), directory=directory)
    assert f"resuming from {directory}/checkpoints/step-00000020.pt: 20 steps are done" in caplog.text
    assert (result.status, result.steps, result.sessions, result.forced) == ("finished", 30, 2, [])
    assert result.train_seconds > finished.train_seconds
    after = rows(directory)
    assert after[: len(before)] == before
    assert [int(row["step"]) for row in after[len(before) :]] == [25, 30]
    state = read_checkpoint(directory / "checkpoints" / "step-00000030.pt")["state"]
    assert (state["step"], state["last"]["test"]["count"], state["ema"].keys()) == (30, 50, state["model"].keys())


@pytest.mark.slow
def test_a_run_that_is_refused_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1", "checkpoint.keep=9"), directory=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "train.log"}
    with pytest.raises(ConfigError, match=r"^the checkpoint .*step-00000007\.pt is of another network or optimizer: "):
        run(tiny("epochs=2", "model.width=0.5", "resume_force=true"), directory=tmp_path)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_what_is_forced_is_said_and_kept(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tiny("epochs=1"), directory=tmp_path)
    overrides = ("epochs=2", "optim.lr=0.05", "precision=bf16", "kernels=plain", "resume_force=true")
    with caplog.at_level("INFO"):
        result = run(tiny(*overrides), directory=tmp_path)
    forced = ["optim.lr: saved 0.1, requested 0.05", "precision: saved fp32, requested bf16"]
    assert result.forced == [f"after 7 steps: {change}" for change in forced]
    assert read_checkpoint(tmp_path / "checkpoints" / "last.pt")["forced"] == result.forced
    for change in forced:
        assert f"another run from here on, by resume_force: {change}" in caplog.text


# ----------------------------------------------------------------------------------------------------------- init_from


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tiny("epochs=1", "ema_decay=0.5"), directory=tmp_path / "first")
    source = read_checkpoint(tmp_path / "first/checkpoints/last.pt")["state"]
    plain = tmp_path / "weights.pt"
    torch.save(source["ema"], plain)
    for number, path in enumerate((tmp_path / "first", tmp_path / "first/checkpoints/last.pt", plain)):
        directory = tmp_path / f"second-{number}"
        with caplog.at_level("INFO"):
            run(tiny("epochs=1", "seed=5", f"init_from={path}", "ema_decay=0.9"), directory=directory)
        assert f"beginning with 44 of the 44 tensors of {path}" in caplog.text
        for key in ("model", "ema"):
            start = read_checkpoint(directory / "checkpoints/step-00000000.pt")["state"][key]
            assert all(torch.equal(start[name], source["ema"][name]) for name in start), "the moving average, if any"


@pytest.mark.slow
def test_the_classifier_may_differ(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of weights does not name its classes: what does not fit is left alone."""
    run(tiny("epochs=1"), directory=tmp_path / "first")
    torch.save(read_checkpoint(tmp_path / "first/checkpoints/last.pt")["state"]["model"], tmp_path / "weights.pt")
    source = f"init_from={tmp_path / 'weights.pt'}"
    with caplog.at_level("INFO"):
        run(tiny("epochs=1", source), directory=tmp_path / "same")
        assert "rows of the classifier in their order, since the file does not name its classes" in caplog.text
        run(tiny("epochs=1", "dataset.num_classes=3", source), directory=tmp_path / "other")
    assert "beginning with 42 of the 44 tensors" in caplog.text
    assert "left as initialised: fc.bias is (10,) there and (3,) here" in caplog.text
    assert "left as initialised: fc.weight is (10, 16) there and (3, 16) here" in caplog.text


@pytest.mark.slow
def test_what_init_from_refuses(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1"), directory=tmp_path / "first")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no weights")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    broken = tmp_path / "broken.pt"
    whole = (tmp_path / "first/checkpoints/last.pt").read_bytes()
    broken.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    again = "; copy or download it again, or give another file$"
    cases = {
        "absent": "^init_from: expected a run directory or a file of weights, got '.*/absent', which does not exist; ",
        "empty": "^init_from: expected a run with checkpoints, got .*/empty, which has none; give a run that has ",
        "text": f"^init_from: cannot read .*/text: .*{again}",
        "numbers.pt": "^init_from: expected weights by name in .*/numbers.pt, got dict of other things; give a file ",
        "broken.pt": f"^init_from: cannot read .*/broken.pt: .*{again}",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            run(tiny("epochs=1", f"init_from={tmp_path / name}"), directory=tmp_path / f"from-{name}")
    message = (
        r"^init_from: the weights in .* are of another network: 30 tensors do not fit, first layer1\.1\.conv1\.weight "
        r"\(expected \(4, 4, 3, 3\), got none\); try model\.depth=8$"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        run(tiny("epochs=1", "model.depth=14", f"init_from={tmp_path / 'first'}"), directory=tmp_path / "deeper")
    assert len(caught.value.details.splitlines()) == 1 + 20 + 1


@pytest.mark.slow
def test_a_run_that_is_taken_up_does_not_begin_again(tiny: Tiny, tmp_path: Path, cut_back, rows) -> None:
    run(tiny("epochs=1"), directory=tmp_path / "first")
    length = ("epochs=null", "steps=12", "checkpoint.every=1steps", "checkpoint.keep=100", "log_every=1")
    config = tiny(*length, f"init_from={tmp_path / 'first'}")
    run(config, directory=tmp_path / "straight")
    run(config, directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=7))
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")
