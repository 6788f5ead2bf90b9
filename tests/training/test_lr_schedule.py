"""Tables of steps and learning rates; and torch's own schedulers, step by step."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from resnet_train.config.run import Config
from resnet_train.training.lr_schedule import build_lr_schedule, constant, cosine, linear, multistep, with_warmup

# ------------------------------------------------------------------------------------------------------------ schedules


def test_he2015_resnet110() -> None:
    """0.01 for 400 steps, then 0.1, divided by 10 at 32,000 and 48,000 (He et al. 2015, section 4.2)."""
    lr_at = multistep(0.1, milestones=[32_000, 48_000], gamma=0.1)
    lr_at = with_warmup(lr_at, 0.1, warmup_steps=400, start=0.1, shape="constant")
    table = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {step: lr_at(step) for step in table} == pytest.approx(table, rel=1e-12)


def test_cosine() -> None:
    lr_at = cosine(0.4, total_steps=8, warmup_steps=0, final_lr=0.0)
    table = [0.4, 0.3847759065, 0.3414213562, 0.2765366865, 0.2, 0.1234633135, 0.0585786438, 0.0152240935, 0.0, 0.0]
    assert [lr_at(step) for step in range(10)] == pytest.approx(table, abs=1e-10)


def test_cosine_with_final_lr_and_warmup() -> None:
    """The cosine starts where the warm-up ends, and takes what is left of the run."""
    lr_at = cosine(0.4, total_steps=8, warmup_steps=4, final_lr=0.1)
    lr_at = with_warmup(lr_at, 0.4, warmup_steps=4, start=0.0, shape="linear")
    table = [0.1, 0.2, 0.3, 0.4, 0.4, 0.3560660172, 0.25, 0.1439339828, 0.1]
    assert [lr_at(step) for step in range(9)] == pytest.approx(table, abs=1e-10)


def test_linear() -> None:
    lr_at = linear(0.4, total_steps=5, warmup_steps=0, final_lr=0.0)
    assert [lr_at(step) for step in range(7)] == pytest.approx([0.4, 0.32, 0.24, 0.16, 0.08, 0.0, 0.0], abs=1e-12)


def test_linear_with_warmup_is_a_triangle() -> None:
    lr_at = linear(0.4, total_steps=10, warmup_steps=4, final_lr=0.1)
    lr_at = with_warmup(lr_at, 0.4, warmup_steps=4, start=0.2, shape="linear")
    table = [0.16, 0.24, 0.32, 0.4, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1]
    assert [lr_at(step) for step in range(11)] == pytest.approx(table, rel=1e-12)


def test_multistep() -> None:
    lr_at = multistep(0.8, milestones=[2, 3, 5], gamma=0.5)
    assert [lr_at(step) for step in range(7)] == [0.8, 0.8, 0.4, 0.2, 0.2, 0.1, 0.1]
    assert multistep(0.8, milestones=[], gamma=0.5)(10**6) == 0.8


def test_constant() -> None:
    assert [constant(0.3)(step) for step in (0, 1, 10**6)] == [0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("warmup_steps", "start", "shape", "table"),
    [
        (0, 0.5, "linear", [1.0, 1.0, 1.0, 1.0, 1.0]),
        (1, 0.0, "linear", [1.0, 1.0, 1.0, 1.0, 1.0]),
        (4, 0.0, "linear", [0.25, 0.5, 0.75, 1.0, 1.0]),
        (4, 0.2, "linear", [0.4, 0.6, 0.8, 1.0, 1.0]),
        (0, 0.5, "constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        (2, 0.5, "constant", [0.5, 0.5, 1.0, 1.0, 1.0]),
        (4, 1.0, "constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_warmup(warmup_steps: int, start: float, shape: Any, table: list[float]) -> None:
    lr_at = with_warmup(constant(2.0), 2.0, warmup_steps=warmup_steps, start=start, shape=shape)
    assert [lr_at(step) / 2.0 for step in range(5)] == pytest.approx(table, rel=1e-12)


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_the_last_step_of_a_run_is_one_above_the_final_learning_rate(schedule: Any) -> None:
    """The learning rate falls with every step and would arrive with the first one after the run."""
    lr_at = schedule(0.1, total_steps=1000, warmup_steps=100, final_lr=0.001)
    lrs = [lr_at(step) for step in range(100, 1001)]
    assert lrs[0] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(lrs))
    assert 0.001 < lrs[-2] < 0.0012
    assert lrs[-1] == pytest.approx(0.001)


@pytest.mark.parametrize("schedule", [cosine, linear])
@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (1, 1), (1, 0)])
def test_a_run_that_is_all_warmup_or_a_single_step(schedule: Any, total: int, warmup: int) -> None:
    lr_at = schedule(0.1, total_steps=total, warmup_steps=warmup, final_lr=0.0)
    lr_at = with_warmup(lr_at, 0.1, warmup_steps=warmup, start=0.0, shape="linear")
    assert lr_at(total - 1) == pytest.approx(0.1)


# ----------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("overrides", "table"),
    [
        (("schedule=cosine",), {0: 0.4, 10: 0.2, 20: 0.0}),
        (("schedule=linear", "schedule.final_lr=0.1", "schedule.warmup=0"), {0: 0.4, 10: 0.25, 20: 0.1}),
        (("schedule=multistep", "schedule.milestones=[1, 2]", "schedule.gamma=0.5"), {4: 0.4, 5: 0.2, 10: 0.1}),
        (("schedule=constant",), {0: 0.4, 20: 0.4}),
        (("schedule=constant", "schedule.warmup=1"), {0: 0.08, 4: 0.4, 5: 0.4}),
        (("schedule=constant", "schedule.warmup='2 steps'", "schedule.warmup_start=0.5"), {0: 0.3, 1: 0.4}),
    ],
)
def test_the_configuration_decides(
    tiny: Callable[..., Config], overrides: tuple[str, ...], table: dict[int, float]
) -> None:
    """Durations count in epochs of five steps unless they say steps."""
    lr_at = build_lr_schedule(tiny(*overrides).schedule, lr=0.4, total_steps=20, steps_per_epoch=Fraction(5))
    assert {step: lr_at(step) for step in table} == pytest.approx(table, abs=1e-12)


# --------------------------------------------------------------------------------------------------- torch's schedulers


def lrs_of(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    lrs = []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def some_optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.parametrize(("lr", "final_lr", "total"), [(0.1, 0.0, 1000), (0.4, 0.001, 391), (1.0, 0.0, 1)])
def test_cosine_is_cosine_annealing_lr(lr: float, final_lr: float, total: int) -> None:
    optimizer = some_optimizer(lr)
    expected = lrs_of(optimizer, CosineAnnealingLR(optimizer, total, eta_min=final_lr), total)
    lr_at = cosine(lr, total_steps=total, warmup_steps=0, final_lr=final_lr)
    assert [lr_at(step) for step in range(total)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("milestones", "gamma"), [([100, 150], 0.1), ([0, 1, 199], 0.2), ([], 0.1)])
def test_multistep_is_multi_step_lr(milestones: list[int], gamma: float) -> None:
    optimizer = some_optimizer(0.1)
    expected = lrs_of(optimizer, MultiStepLR(optimizer, milestones, gamma=gamma), 200)
    lr_at = multistep(0.1, milestones=milestones, gamma=gamma)
    assert [lr_at(step) for step in range(200)] == pytest.approx(expected, rel=1e-12)
