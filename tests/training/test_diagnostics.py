"""What ``diagnostics=true`` shows, and that nothing of it reaches the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServerAccumulator

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.directory import Invocation
from resnet_train.runs.tensorboard import TensorBoard
from resnet_train.train import run
from resnet_train.training.diagnostics import Diagnostics, histograms
from resnet_train.training.setup import build

Tiny = Callable[..., Config]
Rows = Callable[[Path], list[dict[str, str]]]
Events = Callable[[Path], EventAccumulator]
LENGTH = ("epochs=2", "log_every=1", "checkpoint.keep=100")
LAYERS = {"conv1", "fc", *(f"layer{stage}.0.conv{number}" for stage in (1, 2, 3) for number in (1, 2))}
BLOCKS = {"layer1.0", "layer2.0", "layer3.0"}


def of(tags: list[str], group: str) -> set[str]:
    return {tag.removeprefix(f"{group}/") for tag in tags if tag.startswith(f"{group}/")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("kernels=plain",),
        ("kernels=auto", "accumulate=2", "clip_grad_norm=0.5", "ema_decay=0.9", "dataset.val_size=40"),
        ("kernels=auto", "model.preactivation=true", "model.dropout=0.5", "precision=bf16"),
        ("kernels=plain", "compile=true"),
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.usefixtures("compiler")
def test_the_training_is_the_same_to_the_bit(
    tiny: Tiny, tmp_path: Path, assert_same: Callable[[Any, Any], None], options: tuple[str, ...]
) -> None:
    for choice in ("true", "false"):
        run(tiny(*LENGTH, *options, f"diagnostics={choice}"), directory=tmp_path / choice)
    assert (tmp_path / "true/metrics.csv").read_bytes() == (tmp_path / "false/metrics.csv").read_bytes()
    ends = [read_checkpoint(tmp_path / choice / "checkpoints/last.pt")["state"] for choice in ("true", "false")]
    assert_same(ends[0], ends[1])


@pytest.mark.slow
def test_every_layer_block_and_class_is_shown_at_each_evaluation(
    tiny: Tiny, tmp_path: Path, rows: Rows, events: Events
) -> None:
    overrides = [*LENGTH, "diagnostics=true"]
    run(tiny(*overrides), directory=tmp_path, invocation=Invocation([], overrides))
    found, table = events(tmp_path), {int(row["step"]): row for row in rows(tmp_path)}
    steps = [step for step, row in table.items() if row["accuracy/test"]]
    tags = found.Tags()
    assert of(tags["histograms"], "weights") == of(tags["histograms"], "gradients") == LAYERS
    assert of(tags["scalars"], "per layer gradient norm") == LAYERS
    for statistic in ("mean", "std", "zeros"):
        assert of(tags["scalars"], f"per layer activation {statistic}") == BLOCKS
    assert tags["graph"]
    for tag in (tag for tag in tags["scalars"] if tag.startswith("per ")):
        assert [event.step for event in found.Scalars(tag)] == steps, tag

    def at(tag: str) -> list[float]:
        return [event.value for event in found.Scalars(tag)]

    for index, step in enumerate(steps):
        norm = math.sqrt(sum(at(f"per layer gradient norm/{layer}")[index] ** 2 for layer in LAYERS))
        whole = float(table[step]["gradient_norm"])  # with the norms' own parameters and the bias
        assert 0.7 * whole < norm < whole
    saved = read_checkpoint(tmp_path / "checkpoints/last.pt")["state"]["model"]
    for layer in LAYERS:
        weight, last = saved[f"{layer}.weight"], found.Histograms(f"weights/{layer}")[-1]
        histogram = last.histogram_value
        assert (last.step, histogram.num, sum(histogram.bucket)) == (steps[-1], weight.numel(), weight.numel())
        assert (histogram.min, histogram.max) == (weight.min().item(), weight.max().item())
        assert (histogram.sum, histogram.sum_squares) == pytest.approx(
            (weight.sum().item(), weight.square().sum().item()), rel=1e-4, abs=1e-4
        )
    classes = build(tiny()).eval_data["test"].split.labels.bincount(minlength=10).tolist()
    hits = sum(at(f"per class accuracy/pattern {label}")[-1] * number for label, number in enumerate(classes) if number)
    assert hits / sum(classes) == pytest.approx(float(table[steps[-1]]["accuracy/test"]))


@pytest.mark.slow
def test_a_resumed_run_shows_each_once(tiny: Tiny, tmp_path: Path) -> None:
    """After a checkpoint that lies before the newest evaluation, and after the end; with the server's own reader."""
    pytest.importorskip("matplotlib")
    options = (*LENGTH, "diagnostics=true", "dataset.num_test=100")
    run(tiny(*options), directory=tmp_path)
    (tmp_path / "summary.json").unlink()
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != "step-00000007.pt":  # after one epoch
            path.unlink()
    for length in ("epochs=2", "epochs=3"):
        run(tiny(*options, length), directory=tmp_path)
    found = ServerAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    for tag in ("weights/fc", "gradients/fc", "per layer gradient norm/fc", "per layer activation mean/layer1.0"):
        assert [event.step for event in found.Tensors(tag)] == [7, 13, 19], tag
    for tag in ("test/confusion matrix", "test/worst mistakes"):
        assert [event.step for event in found.Tensors(tag)] == [13, 19], tag
    assert [event.step for event in found.Tensors("augmented training images")] == [0]
    files = [path.read_bytes() for path in tmp_path.glob("events*")]
    assert len(files) == 3
    assert sum(b"CifarResNet/" in data for data in files) == 1, "one graph"


def test_a_histogram_counts_every_value_that_is_finite() -> None:
    tensors = {
        "even": torch.linspace(-1, 1, 640),
        "constant": torch.zeros(3, 4),
        "half": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "infinite": torch.tensor([1.0, math.inf]),
    }
    found = histograms(tensors)
    assert found.keys() == {"even", "constant", "half"}
    assert found["even"].counts == [10.0] * 64
    assert sum(found["constant"].counts) == 12
    assert found["constant"].low < 0 < found["constant"].high
    assert (found["half"].low, found["half"].high, found["half"].total, found["half"].squares) == (1, 2, 3, 5)


def test_what_fails_is_told_once_and_left_out(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny()
    built, board = build(config), TensorBoard(tmp_path, config, from_step=0)
    diagnostics = Diagnostics(board, enabled=True)
    for _ in range(2):
        diagnostics.write(built, torch.zeros(3, 10))  # logits of another number of images
    assert caplog.text.count("no diagnostics from here on: RuntimeError: ") == 1
    assert not diagnostics.enabled
    board.close("finished")
    assert b"per class" not in next(tmp_path.glob("events*")).read_bytes()


def test_a_graph_reads_like_the_network(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("diagnostics=true")
    built, board = build(config), TensorBoard(tmp_path, config, from_step=0)
    before = torch.get_rng_state()
    Diagnostics(board, enabled=True).begin(config.model, built)
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn that training would draw"
    board.close("finished")
    graph = EventAccumulator(str(tmp_path)).Reload().Graph()
    nodes = {node.name: node.op for node in graph.node}
    assert "aten::_convolution" in nodes.values()
    assert any("BasicBlock[0]/Conv2d[conv2]" in name for name in nodes)
