"""Means of what is read from the device, and losses that are no numbers."""

from __future__ import annotations

import math

import pytest
import torch

from resnet_train.errors import RunError
from resnet_train.training.metrics import TrainMetrics
from resnet_train.training.state import Progress
from resnet_train.training.step import Health, StepOutput

DIVERGED = (
    "training has diverged. Start again with a smaller optim.lr, a warm-up (schedule.warmup=5) or clip_grad_norm=1; "
    "the last checkpoint is from before it"
)


def output(loss: float, accuracy: float = 0.5) -> StepOutput:
    return StepOutput(torch.tensor(loss), torch.tensor(accuracy), None)


def health(grad_norm: float, largest: float = 1.0) -> Health:
    return Health(torch.tensor(grad_norm), torch.tensor(largest), lambda: "bn1.running_var")


def test_windows_and_epochs_have_means_of_their_own() -> None:
    metrics = TrainMetrics(Progress())
    metrics.add(output(4.0, 0.0))
    metrics.add(output(2.0, 0.5))
    assert metrics.read(2, health(7.0)) == 2
    assert metrics.read(2) == 0, "nothing is pending: nothing is counted twice"
    assert metrics.peek() == metrics.peek() == (3.0, 0.25)
    assert metrics.grad_norm() == 7.0
    assert metrics.end_window() == (3.0, 0.25)
    metrics.add(output(0.0, 1.0))
    metrics.read(3)
    assert math.isnan(metrics.grad_norm()), "not measured"
    assert metrics.end_window() == (0.0, 1.0)
    assert metrics.end_epoch() == (2.0, 0.5)
    metrics.add(output(8.0, 0.75))
    metrics.read(4)
    assert metrics.end_epoch() == metrics.end_window() == (8.0, 0.75)


def test_it_goes_on_from_what_was_saved() -> None:
    progress = Progress(window=[[1.0, 0.5]], epoch=[[3.0, 0.0], [1.0, 0.5]])
    metrics = TrainMetrics(progress)
    metrics.add(output(2.0, 1.0))
    metrics.read(11)
    assert progress == Progress(window=[[1.0, 0.5], [2.0, 1.0]], epoch=[[3.0, 0.0], [1.0, 0.5], [2.0, 1.0]])
    assert (metrics.end_window(), metrics.end_epoch()) == ((1.5, 0.75), (2.0, 0.5))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("position", "step"), [(0, 8), (2, 10)])
def test_a_loss_that_is_no_number_names_its_step(loss: float, position: int, step: int) -> None:
    """Steps 8 to 10 are pending; from the first bad one on all are bad."""
    progress = Progress()
    metrics = TrainMetrics(progress, skips_overflow=True)
    for index in range(3):
        metrics.add(output(loss if index >= position else 1.0))
    with pytest.raises(RunError) as caught:
        metrics.read(10, health(math.nan))
    assert str(caught.value) == f"the loss is {loss} at step {step}: {DIVERGED}"
    assert progress == Progress()


def test_a_gradient_that_is_no_number_is_an_error_unless_the_step_was_skipped() -> None:
    for norm in (math.nan, math.inf):
        metrics = TrainMetrics(Progress())
        metrics.add(output(1.0))
        with pytest.raises(RunError) as caught:
            metrics.read(7, health(norm))
        assert str(caught.value) == f"the gradient's norm is {norm} at step 7: {DIVERGED}"
    scaled = TrainMetrics(Progress(), skips_overflow=True)
    scaled.add(output(1.0))
    scaled.read(7, health(math.inf))
    assert scaled.peek() == (1.0, 0.5)


@pytest.mark.parametrize("largest", [math.nan, math.inf])
@pytest.mark.parametrize("skips_overflow", [False, True])
def test_a_state_that_is_no_number_is_named(largest: float, skips_overflow: bool) -> None:
    metrics = TrainMetrics(Progress(), skips_overflow=skips_overflow)
    metrics.add(output(1.0))
    with pytest.raises(RunError) as caught:
        metrics.read(7, health(1.0, largest))
    assert str(caught.value) == f"bn1.running_var is not finite at step 7: {DIVERGED}"
