"""Durations: epochs or steps, as a configuration gives them, turned into numbers of steps. Exact, without floats."""

from __future__ import annotations

import math
import re
from fractions import Fraction

Duration = int | float | str

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?)?\s*")


def parse_duration(duration: Duration) -> tuple[Fraction, str]:
    """Split ``5``, ``"5 epochs"`` or ``"400 steps"`` into a number and its unit; a bare number means epochs.

    Raises ``ValueError`` for anything else, for negative numbers and for fractions of a step.
    """
    match = _DURATION.fullmatch(str(duration))
    if not match:
        raise ValueError(f"expected a duration such as 5, '5 epochs' or '400 steps', got {duration!r}")
    number, unit = Fraction(match[1]), (match[2] or "epochs").rstrip("s") + "s"
    if unit == "steps" and number.denominator != 1:
        raise ValueError(f"expected a whole number of steps, got {duration!r}")
    return number, unit


def to_steps(duration: Duration, steps_per_epoch: Fraction) -> int:
    """Steps until ``duration`` has passed, e.g. 10 epochs of 50,000 images at batch 128: 3907 (3906.25 rounded up).

    An epoch is rarely a whole number of steps. Rounding up means that an epoch is over with the step in which its last
    image was seen. Raises ``ValueError`` as `parse_duration`.
    """
    number, unit = parse_duration(duration)
    return math.ceil(number * steps_per_epoch) if unit == "epochs" else int(number)


def due(step: int, every: Duration, steps_per_epoch: Fraction) -> bool:
    """Whether the step that made it ``step`` completed steps also completed another ``every``; never for 0."""
    number, unit = parse_duration(every)
    interval = number * steps_per_epoch if unit == "epochs" else number
    return bool(interval) and step // interval > (step - 1) // interval
