"""WHERE THE LEARNING RATE IS DECIDED: the choice (`build_lr_schedule`), and each schedule as a function of the step.

Steps are counted from 0; ``lr_at(step)`` is the learning rate of step number ``step``. Nothing here holds state, so a
resumed run has the right learning rate without being told where it was. The loop sets it before each step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from resnet_train.config.durations import to_steps
from resnet_train.config.schedule import ConstantConfig, CosineConfig, LinearConfig, MultiStepConfig, ScheduleConfig

LRSchedule = Callable[[int], float]
WarmupShape = Literal["linear", "constant"]


def build_lr_schedule(config: ScheduleConfig, *, lr: float, total_steps: int, steps_per_epoch: Fraction) -> LRSchedule:
    """The learning rate as a function of the step."""
    warmup_steps = to_steps(config.warmup, steps_per_epoch)
    lr_at: LRSchedule
    match config:
        case CosineConfig():
            lr_at = cosine(lr, total_steps=total_steps, warmup_steps=warmup_steps, final_lr=config.final_lr)
        case LinearConfig():
            lr_at = linear(lr, total_steps=total_steps, warmup_steps=warmup_steps, final_lr=config.final_lr)
        case MultiStepConfig():
            milestones = [to_steps(milestone, steps_per_epoch) for milestone in config.milestones]
            lr_at = multistep(lr, milestones=milestones, gamma=config.gamma)
        case ConstantConfig():
            lr_at = constant(lr)
        case _:
            raise TypeError(f"no schedule for {type(config).__name__}")
    return with_warmup(
        lr_at,
        lr,
        warmup_steps=warmup_steps,
        start=config.warmup_start,
        shape=config.warmup_shape,  # type: ignore[arg-type]  # checked with the configuration
    )


def cosine(lr: float, *, total_steps: int, warmup_steps: int, final_lr: float) -> LRSchedule:
    """Half a cosine from ``lr`` to ``final_lr`` (Loshchilov and Hutter 2016, 1608.03983), without restarts."""

    def lr_at(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return lr_at


def linear(lr: float, *, total_steps: int, warmup_steps: int, final_lr: float) -> LRSchedule:
    """A straight line from ``lr`` down to ``final_lr``; with a warm-up in front, the one-cycle triangle."""

    def lr_at(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return lr + (final_lr - lr) * min(progress, 1.0)

    return lr_at


def multistep(lr: float, *, milestones: Sequence[int], gamma: float) -> LRSchedule:
    """``lr`` times ``gamma`` for every milestone (in steps, ascending) that has been reached."""
    return lambda step: lr * gamma ** bisect_right(milestones, step)


def constant(lr: float) -> LRSchedule:
    """The same learning rate throughout."""
    return lambda _step: lr


def with_warmup(lr_at: LRSchedule, lr: float, *, warmup_steps: int, start: float, shape: WarmupShape) -> LRSchedule:
    """Replace the first ``warmup_steps`` of ``lr_at``.

    ``linear`` rises in equal steps above ``start * lr`` and reaches ``lr`` with the last warm-up step; ``constant``
    stays at ``start * lr``, as He et al. 2015 did for ResNet-110.
    """

    def warmed(step: int) -> float:
        if step >= warmup_steps:
            return lr_at(step)
        progress = (step + 1) / warmup_steps if shape == "linear" else 0.0
        return lr * (start + (1 - start) * progress)

    return warmed
