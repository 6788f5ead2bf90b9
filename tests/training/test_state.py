"""What training changes, saved and loaded: continuing is the same, bit for bit, as never having stopped."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset
from resnet_train.data.stream import TrainData
from resnet_train.models.resnet import ResNet
from resnet_train.runs import checkpoint
from resnet_train.runs.summary import Score
from resnet_train.training.plan import build_plan
from resnet_train.training.setup import build_state, build_step_options, build_train_data
from resnet_train.training.state import Progress, TrainState, load_weights
from resnet_train.training.step import StepOptions, train_step

Compose = Callable[..., Config]
AssertSame = Callable[[Any, Any], None]
SCORE = Score(loss=0.5, accuracy=0.75, error=0.25, correct=3, count=4, step=2)


def fresh(config: Config) -> tuple[TrainState, TrainData, StepOptions]:
    """Everything that a step needs, as a new process builds it."""
    plan, dataset = build_plan(replace(config, kernels="plain")), load_dataset(config.dataset, seed=config.seed)
    state = build_state(config, plan, num_classes=len(dataset.classes))
    return state, build_train_data(config, plan, dataset), build_step_options(config, plan)


def train(state: TrainState, data: TrainData, options: StepOptions, *, until: int) -> list[float]:
    """Losses of the steps up to number ``until``, at a learning rate that changes with each."""
    losses = []
    while state.step < until:
        images, labels = data.batch(state.step)
        output = train_step(state, images, labels, lr=0.1 / (1 + state.step), options=options)
        losses.append(output.loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("optim=sgd",),
        ("optim=sgd", "optim.nesterov=false", "ema_decay=0.9"),
        ("optim=adamw",),
        ("optim=adamw", "ema_decay=0.9", "accumulate=2", "precision=bf16", "dataset.augment.mixup=0.2"),
    ],
    ids=" ".join,
)
def test_continuing_is_the_same_as_never_having_stopped(
    tiny: Compose, tmp_path: Path, assert_same: AssertSame, overrides: list[str]
) -> None:
    """Twelve steps of an epoch of 6.25, in one go, and by way of a file that new objects are filled from."""
    config = tiny(*overrides)
    whole, data, options = fresh(config)
    losses = train(whole, data, options, until=12)

    first, data, options = fresh(config)
    begun = train(first, data, options, until=5)
    checkpoint.write_checkpoint(tmp_path / "half.pt", {"format": checkpoint.FORMAT, "state": first.state_dict()})
    train(first, data, options, until=7)  # what was written stays as it was

    second, data, options = fresh(config)
    second.load_state_dict(checkpoint.read_checkpoint(tmp_path / "half.pt")["state"])
    assert second.step == 5
    assert begun + train(second, data, options, until=12) == losses
    assert_same(second.state_dict(), whole.state_dict())
    assert len(set(losses)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", ["true", "false"])
def test_another_layout_continues_the_same_training(tiny: Compose, tmp_path: Path, optimizer: str, layout: str) -> None:
    """To rounding: fused optimizers walk parameter, gradient and state as they lie in memory."""
    overrides = (f"optim={optimizer}", f"optim.lr={0.1 if optimizer == 'sgd' else 0.01}", "ema_decay=0.9")
    others = [choice for choice in ("true", "false") if choice != layout]
    config, other = (replace(tiny(*overrides), channels_last=choice) for choice in (layout, *others))
    first, data, options = fresh(config)
    train(first, data, options, until=4)
    checkpoint.write_checkpoint(tmp_path / "half.pt", {"format": checkpoint.FORMAT, "state": first.state_dict()})
    expected = train(first, data, options, until=10)

    second, data, options = fresh(other)
    second.load_state_dict(checkpoint.read_checkpoint(tmp_path / "half.pt")["state"])
    for parameter, values in second.optimizer.state.items():
        for name, value in values.items():
            assert value.stride() == parameter.stride() or value.ndim == 0, name
    assert train(second, data, options, until=10) == pytest.approx(expected, rel=1e-4)
    for network in ("model", "ema"):
        ours, theirs = (getattr(state, network).state_dict() for state in (second, first))
        for name, value in ours.items():
            assert torch.allclose(value, theirs[name], rtol=1e-3, atol=1e-3), name


def test_everything_is_loaded(tiny: Compose, assert_same: AssertSame) -> None:
    config = tiny("ema_decay=0.9")
    state, data, options = fresh(config)
    train(state, data, options, until=2)
    state.last, state.best = {"test": SCORE}, {"val": SCORE, "test": SCORE}
    state.progress = Progress(window=[[1.0, 0.5]], epoch=[[2.0, 0.25], [1.0, 0.5]])
    saved = copy.deepcopy(state.state_dict())
    other, _, _ = fresh(replace(config, seed=1))
    other.load_state_dict(saved)
    assert_same(other.state_dict(), state.state_dict())
    assert (other.last, other.best, other.step) == (state.last, state.best, 2)
    other.progress.window.clear()
    assert saved["progress"]["window"] == [[1.0, 0.5]], "shared with what was loaded"
    assert state.state_dict()["progress"]["window"] is not state.progress.window


def test_a_scaler_in_use_is_loaded(tiny: Compose) -> None:
    config, states = tiny(), []
    for scale in (1024.0, 8.0):
        state, _, _ = fresh(config)
        state.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=scale)
        states.append(state)
    states[1].load_state_dict(states[0].state_dict())
    assert states[1].scaler.get_scale() == 1024.0


@pytest.mark.slow
def test_a_scaler_of_a_run_that_had_none_is_new(tiny: Compose) -> None:
    """``precision=fp16`` where it was bf16, by ``resume_force``."""
    saved, _, _ = fresh(tiny())
    state, _, _ = fresh(tiny())
    state.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=64.0)
    state.load_state_dict(saved.state_dict())
    assert state.scaler.get_scale() == 64.0
    saved.load_state_dict(state.state_dict())  # and the other way round there is nothing to load it into
    assert not saved.scaler.is_enabled()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_is_tensors_and_plain_types(tiny: Compose, assert_same: AssertSame, optimizer: str) -> None:
    state, data, options = fresh(tiny(f"optim={optimizer}", "ema_decay=0.9"))
    train(state, data, options, until=1)
    state.last = {"test": SCORE}
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(buffer) == []
    buffer.seek(0)
    assert_same(torch.load(buffer, weights_only=True)["last"], state.state_dict()["last"])
    assert "layer1.0.conv1.weight" in state.state_dict()["model"], "names of the network's own"
    assert "layer1.0.conv1.weight" in state.state_dict()["ema"]


@pytest.mark.slow
def test_the_average_is_evaluated_where_there_is_one(tiny: Compose) -> None:
    without, _, _ = fresh(tiny())
    averaged, data, options = fresh(tiny("ema_decay=0.9"))
    assert without.ema is None
    assert without.eval_model is without.model
    assert averaged.eval_model is averaged.ema
    assert not any(parameter.requires_grad for parameter in averaged.eval_model.parameters())
    train(averaged, data, options, until=1)
    pairs = zip(averaged.eval_model.parameters(), averaged.model.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("model.width=0.5", "size mismatch for conv1.weight"),
        ("model.depth=14", r"Missing key\(s\) in state_dict: \"layer1.1.conv1.weight\""),
        ("model.conv_bias=true", r"Missing key\(s\) in state_dict: \"conv1.bias\""),
        ("dataset.num_classes=5", "size mismatch for fc.weight"),
    ],
)
def test_another_network_is_refused(tiny: Compose, other: str, message: str) -> None:
    (saved, _, _), (state, _, _) = fresh(tiny()), fresh(tiny(other))
    with pytest.raises(RuntimeError, match=message):
        state.load_state_dict(saved.state_dict())
    with pytest.raises(RuntimeError):
        saved.load_state_dict(state.state_dict())


# ---------------------------------------------------------------------------------------------- weights of other origin


def test_weights_from_before_batches_were_counted() -> None:
    model, other = ResNet(18), ResNet(18)
    weights = {name: value for name, value in other.state_dict().items() if "num_batches_tracked" not in name}
    assert load_weights(model, weights) == []
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
