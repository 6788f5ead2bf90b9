"""The group ``schedule``: which curve the learning rate follows. Its course is computed elsewhere, from the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from resnet_train.config import checks
from resnet_train.config.durations import parse_duration
from resnet_train.errors import ConfigError


@dataclass
class ScheduleConfig:
    """What all schedules share. Durations: 5 or "5 epochs" or "400 steps"."""

    NAME: ClassVar[str]

    name: str
    warmup: Any  # duration, counted in the run's length
    warmup_start: float  # learning rate of the first steps, as a fraction of optim.lr
    warmup_shape: str  # linear: rises to optim.lr; constant: stays until the warm-up ends


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine."""

    NAME: ClassVar[str] = "cosine"

    final_lr: float


@dataclass
class LinearConfig(ScheduleConfig):
    """One cycle: up in the warm-up, then down in a straight line."""

    NAME: ClassVar[str] = "linear"

    final_lr: float


@dataclass
class MultiStepConfig(ScheduleConfig):
    """The learning rate is multiplied by gamma at each milestone."""

    NAME: ClassVar[str] = "multistep"

    milestones: list[Any]  # durations, ascending
    gamma: float


@dataclass
class ConstantConfig(ScheduleConfig):
    """The same learning rate throughout."""

    NAME: ClassVar[str] = "constant"


def check_schedule(schedule: ScheduleConfig, lr: float) -> None:
    """Raise `ConfigError` for a schedule that no length of training can make right."""
    checks.option_name("schedule", schedule)
    checks.duration("schedule.warmup", schedule.warmup)
    checks.number("schedule.warmup_start", schedule.warmup_start, at_least=0, at_most=1)
    checks.choice("schedule.warmup_shape", schedule.warmup_shape)
    if schedule.warmup_shape == "constant" and schedule.warmup_start == 0 and parse_duration(schedule.warmup)[0] > 0:
        raise ConfigError(
            "schedule.warmup_start: expected more than 0 with warmup_shape=constant, got 0, at which nothing is "
            "learnt; try schedule.warmup_start=0.1"
        )
    match schedule:
        case CosineConfig() | LinearConfig():
            checks.number("schedule.final_lr", schedule.final_lr, at_least=0)
            if schedule.final_lr > lr:
                raise ConfigError(f"schedule.final_lr: expected at most optim.lr={lr:g}, got {schedule.final_lr:g}")
        case MultiStepConfig():
            checks.number("schedule.gamma", schedule.gamma, above=0)
            for index, milestone in enumerate(schedule.milestones):
                checks.duration(f"schedule.milestones[{index}]", milestone, positive=True)
