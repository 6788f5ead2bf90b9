"""The learning rate as a pure function of the step.

Updates are counted from 0; ``rate(step)`` is the rate of update number ``step``. Nothing here holds state, so a
resumed run has the right rate without being told where it was.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

Rate = Callable[[int], float]
WarmupShape = Literal["linear", "constant"]


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
