"""Durations as numbers of updates, and the learning rate as a pure function of the step.

Updates are counted from 0; ``rate(step)`` is the rate of update number ``step``. Nothing here holds state, so a
resumed run has the right rate without being told where it was.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

Rate = Callable[[int], float]
Duration = int | float | str
WarmupShape = Literal["linear", "constant"]

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
    """Updates until ``duration`` has passed, e.g. 10 epochs of 50,000 images at batch 128: 3907 (3906.25 rounded up).

    An epoch is rarely a whole number of updates. Rounding up means that an epoch is over with the update in which its
    last image was seen. Exact: no floating point. Raises ``ValueError`` as `parse_duration`.
    """
    number, unit = parse_duration(duration)
    return math.ceil(number * steps_per_epoch) if unit == "epochs" else int(number)


def due(step: int, every: Duration, steps_per_epoch: Fraction) -> bool:
    """Whether the update that made it ``step`` completed updates also completed another ``every``; never for 0."""
    number, unit = parse_duration(every)
    interval = number * steps_per_epoch if unit == "epochs" else number
    return bool(interval) and step // interval > (step - 1) // interval


def cosine(lr: float, *, total_steps: int, warmup_steps: int, final_lr: float) -> Rate:
    """Half a cosine from ``lr`` to ``final_lr`` (Loshchilov and Hutter 2016, 1608.03983), without restarts."""

    def rate(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return rate


def linear(lr: float, *, total_steps: int, warmup_steps: int, final_lr: float) -> Rate:
    """A straight line from ``lr`` down to ``final_lr``; with a warm-up in front, the one-cycle triangle."""

    def rate(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return lr + (final_lr - lr) * min(progress, 1.0)

    return rate


def multistep(lr: float, *, milestones: Sequence[int], gamma: float) -> Rate:
    """``lr`` times ``gamma`` for every milestone (in updates, ascending) that has been reached."""
    return lambda step: lr * gamma ** bisect_right(milestones, step)


def constant(lr: float) -> Rate:
    """The same rate throughout."""
    return lambda _step: lr


def with_warmup(rate: Rate, lr: float, *, warmup_steps: int, start: float, shape: WarmupShape) -> Rate:
    """Replace the first ``warmup_steps`` of ``rate``.

    ``linear`` rises in equal steps above ``start * lr`` and reaches ``lr`` with the last warm-up update; ``constant``
    stays at ``start * lr``, as He et al. 2015 did for ResNet-110.
    """

    def warmed(step: int) -> float:
        if step >= warmup_steps:
            return rate(step)
        progress = (step + 1) / warmup_steps if shape == "linear" else 0.0
        return lr * (start + (1 - start) * progress)

    return warmed
