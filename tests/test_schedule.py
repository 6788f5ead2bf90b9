"""Tables: durations to updates, steps to rates; and torch's own schedulers, step by step."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from resnet_train.config.durations import Duration, due, parse_duration, to_steps
from resnet_train.schedule import constant, cosine, linear, multistep, with_warmup

CIFAR = Fraction(50_000, 128)  # 390.625 updates an epoch

# ------------------------------------------------------------------------------------------------------------ durations


@pytest.mark.parametrize(
    ("duration", "number", "unit"),
    [
        (5, "5", "epochs"),
        (0, "0", "epochs"),
        (0.1, "1/10", "epochs"),
        (163.84, "4096/25", "epochs"),
        ("5", "5", "epochs"),
        ("1 epoch", "1", "epochs"),
        ("5 epochs", "5", "epochs"),
        ("0.5 epochs", "1/2", "epochs"),
        ("1 step", "1", "steps"),
        ("400 steps", "400", "steps"),
        ("  400steps ", "400", "steps"),
        ("400.0 steps", "400", "steps"),
    ],
)
def test_durations(duration: Duration, number: str, unit: str) -> None:
    assert parse_duration(duration) == (Fraction(number), unit)


@pytest.mark.parametrize(
    "duration",
    [
        *(-1, -0.5, float("nan"), float("inf"), None, True, False, [1]),
        *("-3 epochs", "5 minutes", "5 epochss", "5 EPOCHS", "epochs", "", "five", "1e3", "1,5", ".5", "5.", "1 2"),
    ],
)
def test_what_is_no_duration(duration: Any) -> None:
    with pytest.raises(ValueError) as error:
        to_steps(duration, CIFAR)
    assert str(error.value) == f"expected a duration such as 5, '5 epochs' or '400 steps', got {duration!r}"


@pytest.mark.parametrize("duration", ["0.5 steps", "400.5 steps", "1.1 step"])
def test_no_fractions_of_a_step(duration: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_duration(duration)
    assert str(error.value) == f"expected a whole number of steps, got {duration!r}"


@pytest.mark.parametrize(
    ("duration", "num_train", "batch_size", "steps"),
    [
        (10, 50_000, 128, 3907),  # 3906.25: the last image is in the 3907th batch
        (1, 50_000, 128, 391),
        (8, 50_000, 128, 3125),  # 390.625 * 8, whole
        (200, 50_000, 128, 78_125),
        (163.84, 50_000, 128, 64_000),  # He et al. 2015
        ("163.84 epochs", 50_000, 128, 64_000),
        (81.92, 50_000, 128, 32_000),
        (122.88, 50_000, 128, 48_000),
        (160, 45_000, 128, 56_250),
        (1, 45_000, 128, 352),
        (1, 50_000, 50_000, 1),
        (3, 1000, 999, 4),
        (0.1, 50_000, 1000, 5),  # exact: 0.1 * 50 is not rounded up to 6
        (0.3, 50_000, 5000, 3),
        (0.07, 50_000, 500, 7),  # 7.000000000000001 in floating point
        (0.001, 50_000, 128, 1),
        (0, 50_000, 128, 0),
        ("400 steps", 50_000, 128, 400),
        ("0 steps", 50_000, 128, 0),
        ("64000 steps", 7, 3, 64_000),
    ],
)
def test_durations_to_updates(duration: Duration, num_train: int, batch_size: int, steps: int) -> None:
    assert to_steps(duration, Fraction(num_train, batch_size)) == steps


# ------------------------------------------------------------------------------------------------------------------ due


@pytest.mark.parametrize(
    ("num_train", "batch_size", "epochs"),
    [
        (50_000, 128, 10),
        (45_000, 128, 3),
        (50_000, 127, 2),
        (1000, 999, 5),
        (999, 1000, 7),
        (100, 100, 4),
        (7, 3, 11),
        (8191, 2, 1),
    ],
)
def test_every_epoch_is_due_once_and_the_last_at_the_end(num_train: int, batch_size: int, epochs: int) -> None:
    per_epoch = Fraction(num_train, batch_size)
    total = to_steps(epochs, per_epoch)
    steps = [step for step in range(1, total + 1) if due(step, 1, per_epoch)]
    assert len(steps) == epochs
    assert steps[-1] == total
    # With the step in which its last image was seen, an epoch is over: counted in images, without fractions.
    seen = [
        step for step in range(1, total + 1) if step * batch_size // num_train > (step - 1) * batch_size // num_train
    ]
    assert steps == seen


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("400 steps", [400, 800, 1200]),
        ("1 step", list(range(1, 1251))),
        (1, [391, 782, 1172]),  # 390.625, 781.25, 1171.875
        ("2 epochs", [782]),
        (0.5, [196, 391, 586, 782, 977, 1172]),
        (0.001, list(range(1, 1251))),  # more often than every update
        (4, []),
        (0, []),
        ("0 steps", []),
    ],
)
def test_due_steps(every: Duration, expected: list[int]) -> None:
    assert [step for step in range(1, 1251) if due(step, every, CIFAR)] == expected


def test_due_refuses_what_is_no_duration() -> None:
    with pytest.raises(ValueError, match=r"^expected a duration such as 5, '5 epochs' or '400 steps', got 'often'$"):
        due(1, "often", CIFAR)


# ---------------------------------------------------------------------------------------------------------------- rates


def test_he2015_resnet110() -> None:
    """0.01 for 400 updates, then 0.1, divided by 10 at 32,000 and 48,000 (He et al. 2015, section 4.2)."""
    rate = multistep(0.1, milestones=[32_000, 48_000], gamma=0.1)
    rate = with_warmup(rate, 0.1, warmup_steps=400, start=0.1, shape="constant")
    table = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {step: rate(step) for step in table} == pytest.approx(table, rel=1e-12)


def test_cosine() -> None:
    rate = cosine(0.4, total_steps=8, warmup_steps=0, final_lr=0.0)
    table = [0.4, 0.3847759065, 0.3414213562, 0.2765366865, 0.2, 0.1234633135, 0.0585786438, 0.0152240935, 0.0, 0.0]
    assert [rate(step) for step in range(10)] == pytest.approx(table, abs=1e-10)


def test_cosine_with_final_rate_and_warmup() -> None:
    """The cosine starts where the warm-up ends, and takes what is left of the run."""
    rate = cosine(0.4, total_steps=8, warmup_steps=4, final_lr=0.1)
    rate = with_warmup(rate, 0.4, warmup_steps=4, start=0.0, shape="linear")
    table = [0.1, 0.2, 0.3, 0.4, 0.4, 0.3560660172, 0.25, 0.1439339828, 0.1]
    assert [rate(step) for step in range(9)] == pytest.approx(table, abs=1e-10)


def test_linear() -> None:
    rate = linear(0.4, total_steps=5, warmup_steps=0, final_lr=0.0)
    assert [rate(step) for step in range(7)] == pytest.approx([0.4, 0.32, 0.24, 0.16, 0.08, 0.0, 0.0], abs=1e-12)


def test_linear_with_warmup_is_a_triangle() -> None:
    rate = linear(0.4, total_steps=10, warmup_steps=4, final_lr=0.1)
    rate = with_warmup(rate, 0.4, warmup_steps=4, start=0.2, shape="linear")
    table = [0.16, 0.24, 0.32, 0.4, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1]
    assert [rate(step) for step in range(11)] == pytest.approx(table, rel=1e-12)


def test_multistep() -> None:
    rate = multistep(0.8, milestones=[2, 3, 5], gamma=0.5)
    assert [rate(step) for step in range(7)] == [0.8, 0.8, 0.4, 0.2, 0.2, 0.1, 0.1]
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
    rate = with_warmup(constant(2.0), 2.0, warmup_steps=warmup_steps, start=start, shape=shape)
    assert [rate(step) / 2.0 for step in range(5)] == pytest.approx(table, rel=1e-12)


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_last_update_of_a_run_is_one_step_above_the_final_rate(schedule: Any) -> None:
    """The rate falls in every update and would arrive with the first one after the run."""
    rate = schedule(0.1, total_steps=1000, warmup_steps=100, final_lr=0.001)
    rates = [rate(step) for step in range(100, 1001)]
    assert rates[0] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert 0.001 < rates[-2] < 0.0012
    assert rates[-1] == pytest.approx(0.001)


@pytest.mark.parametrize("schedule", [cosine, linear])
@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (1, 1), (1, 0)])
def test_a_run_that_is_all_warmup_or_a_single_update(schedule: Any, total: int, warmup: int) -> None:
    rate = schedule(0.1, total_steps=total, warmup_steps=warmup, final_lr=0.0)
    rate = with_warmup(rate, 0.1, warmup_steps=warmup, start=0.0, shape="linear")
    assert rate(total - 1) == pytest.approx(0.1)


# -------------------------------------------------------------------------------------------------- torch's schedulers


def rates_of(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def some_optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.parametrize(("lr", "final_lr", "total"), [(0.1, 0.0, 1000), (0.4, 0.001, 391), (1.0, 0.0, 1)])
def test_cosine_is_cosine_annealing_lr(lr: float, final_lr: float, total: int) -> None:
    optimizer = some_optimizer(lr)
    expected = rates_of(optimizer, CosineAnnealingLR(optimizer, total, eta_min=final_lr), total)
    rate = cosine(lr, total_steps=total, warmup_steps=0, final_lr=final_lr)
    assert [rate(step) for step in range(total)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("milestones", "gamma"), [([100, 150], 0.1), ([0, 1, 199], 0.2), ([], 0.1)])
def test_multistep_is_multi_step_lr(milestones: list[int], gamma: float) -> None:
    optimizer = some_optimizer(0.1)
    expected = rates_of(optimizer, MultiStepLR(optimizer, milestones, gamma=gamma), 200)
    rate = multistep(0.1, milestones=milestones, gamma=gamma)
    assert [rate(step) for step in range(200)] == pytest.approx(expected, rel=1e-12)
