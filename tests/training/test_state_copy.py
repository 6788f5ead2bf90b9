"""What of a state is copied, and when two copies agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_train.training.state import TrainState
from resnet_train.training.state_copy import StateCopy, changing, disagreement
from resnet_train.training.step import StepOptions, train_step

Make = Callable[..., Any]
OPTIONS = StepOptions(ema_decay=0.9)
BOUND = 0.05


@pytest.fixture(params=["sgd", "adamw"])
def trained(request: pytest.FixtureRequest, small_state: Make, small_batch: Make) -> tuple[TrainState, StateCopy]:
    """A state after a step, and what it was before."""
    state = small_state(optimizer=request.param, ema=True, loss_scale=2.0)
    train_step(state, *small_batch(0), lr=0.1, options=OPTIONS)
    before = StateCopy.of(state)
    train_step(state, *small_batch(1), lr=0.1, options=OPTIONS)
    return state, before


def values_of(state: TrainState) -> list[Tensor]:
    return [tensor for tensors in changing(state).values() for tensor in tensors]


def test_everything_that_a_step_changes_is_restored(
    trained: tuple[TrainState, StateCopy], small_batch: Make, assert_same: Callable[[Any, Any], None]
) -> None:
    state, _ = trained
    saved, whole = StateCopy.of(state), copy.deepcopy(state.state_dict())
    gradients = [parameter.grad.clone() for parameter in state.model.parameters() if parameter.grad is not None]
    addresses = [
        value.data_ptr() for name, values in changing(state).items() if name != "gradients" for value in values
    ]
    for step in range(4):  # the loss scale grows after each three
        train_step(state, *small_batch(step), lr=0.1, options=OPTIONS)
    assert state.scaler.get_scale() == 8.0
    state.optimizer.zero_grad(set_to_none=True)
    saved.restore(state)
    assert_same(state.state_dict(), whole)
    assert_same([parameter.grad for parameter in state.model.parameters()], gradients)
    found = [value.data_ptr() for name, values in changing(state).items() if name != "gradients" for value in values]
    assert found == addresses


def test_the_kinds(trained: tuple[TrainState, StateCopy]) -> None:
    """All that a state dict holds, and the gradients."""
    state, _ = trained
    saved = state.state_dict()
    moments = sum(len(values) for values in saved["optimizer"]["state"].values())
    expected = len(saved["model"]) + len(saved["ema"]) + moments + len(list(state.model.parameters()))
    assert len(values_of(state)) == expected
    assert {"parameters", "running_mean", "averaged parameters", "averaged num_batches_tracked", "gradients"} < set(
        changing(state)
    )


@pytest.mark.parametrize("bound", [0.0, BOUND])
def test_equal_ones_agree(trained: tuple[TrainState, StateCopy], bound: float) -> None:
    state, before = trained
    assert disagreement(StateCopy.of(state), StateCopy.of(state), before, bound=bound) == ""


def test_noise_is_within_the_bound_and_not_equal(trained: tuple[TrainState, StateCopy]) -> None:
    """A hundredth of each movement, at random."""
    state, before = trained
    expected, draws = StateCopy.of(state), torch.Generator().manual_seed(0)
    olds = [old for tensors in before.tensors.values() for old in tensors]
    with torch.no_grad():
        for value, old in zip(values_of(state), olds, strict=True):
            if value.is_floating_point() and value.numel() > 1:
                moved = (value - old).norm() / value.numel() ** 0.5
                value.add_(torch.randn(value.shape, generator=draws) * moved, alpha=0.01)
    assert disagreement(StateCopy.of(state), expected, before, bound=BOUND) == ""
    assert disagreement(StateCopy.of(state), expected, before, bound=0.0) == "parameters"


@pytest.mark.slow
@pytest.mark.parametrize("bound", [0.0, BOUND])
def test_each_tensor_that_was_left_out_is_found(trained: tuple[TrainState, StateCopy], bound: float) -> None:
    """One at a time keeps the value that it had before, or, if its kind counts, misses the count."""
    state, before = trained
    expected = StateCopy.of(state)
    for kind, tensors in changing(state).items():
        for tensor, old in zip(tensors, before.tensors[kind], strict=True):
            with torch.no_grad():
                tensor.zero_() if kind == "gradients" else tensor.copy_(old)
            assert disagreement(StateCopy.of(state), expected, before, bound=bound) == kind
            expected.restore(state)


@pytest.mark.parametrize("bound", [0.0, BOUND])
def test_what_is_no_number_is_found(trained: tuple[TrainState, StateCopy], bound: float) -> None:
    state, before = trained
    expected = StateCopy.of(state)
    with torch.no_grad():
        next(state.model.parameters())[0, 0, 0, 0] = torch.nan
    assert disagreement(StateCopy.of(state), expected, before, bound=bound) == "parameters"


def test_another_loss_scale_is_found(trained: tuple[TrainState, StateCopy]) -> None:
    state, before = trained
    expected = StateCopy.of(state)
    state.scaler.update(8.0)
    assert disagreement(StateCopy.of(state), expected, before, bound=BOUND) == "loss scale"


def test_a_tensor_that_moves_by_rounding_alone_agrees(trained: tuple[TrainState, StateCopy]) -> None:
    """A bias before a norm: its gradient is what is left of a sum that should be zero, and of either sign."""
    state, before = trained
    expected = StateCopy.of(state)
    found = StateCopy.of(state)
    index = next(i for i, tensor in enumerate(expected.tensors["parameters"]) if tensor.ndim == 1)
    old = before.tensors["parameters"][index]
    usual = 1e-5 * torch.ones_like(old)
    expected.tensors["parameters"][index].copy_(old + usual)
    found.tensors["parameters"][index].copy_(old - usual)
    assert disagreement(found, expected, before, bound=BOUND) == ""
