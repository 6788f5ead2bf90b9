"""Tables: durations to steps, exactly; and the steps at which something is due."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from resnet_train.config.durations import Duration, due, parse_duration, to_steps

CIFAR = Fraction(50_000, 128)  # 390.625 steps per epoch


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
def test_durations_to_steps(duration: Duration, num_train: int, batch_size: int, steps: int) -> None:
    assert to_steps(duration, Fraction(num_train, batch_size)) == steps


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
        (0.001, list(range(1, 1251))),  # more often than every step
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
