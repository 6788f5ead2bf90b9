"""What ends a run, or a session of it, before its last step: `early_stop` and `max_time`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from resnet_train.config import checks
from resnet_train.errors import ConfigError

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_NAMES = {"s": "seconds?", "min": "minutes?", "h": "hours?", "d": "days?"}
_LENGTH = re.compile(
    r"(\d{1,9}(?:\.\d{1,9})?) ?(?:" + "|".join(rf"(?P<{unit}>{unit}|{name})" for unit, name in _NAMES.items()) + ")"
)
_CLOCK = re.compile(
    r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)"
)  # of Slurm: hours:minutes:seconds, with days in front


@dataclass
class EarlyStopConfig:
    """When a run ends since the accuracy on its validation split no longer rises."""

    patience: int | None  # evaluations in a row without a rise; null: the run has its whole length
    min_delta: float  # a rise is more than this; accuracies lie between 0 and 1


def check_early_stop(config: EarlyStopConfig, *, has_val: bool) -> None:
    """Raise `ConfigError` for values out of range, and where there is no validation split to look at."""
    checks.number("early_stop.min_delta", config.min_delta, at_least=0, below=1)
    if config.patience is None:
        return
    checks.number("early_stop.patience", config.patience, at_least=1)
    if not has_val:
        raise no_val(config.patience)


def no_val(patience: int) -> ConfigError:
    """For `early_stop` without a validation split: the test images do not choose when to stop."""
    return ConfigError(
        f"early_stop.patience: expected a validation split, since the test images choose nothing, got {patience} "
        f"without one; hold images out with dataset.val_size=N, or leave it out"
    )


def seconds_of(max_time: str) -> float:
    """Seconds of ``"2 h"``, ``"90 min"``, ``"45 s"``, ``"1.5 d"``, ``"1:30:00"`` or ``"1-12:00:00"``.

    Raises `ConfigError` for anything else.
    """
    text = max_time.strip()
    seconds = Fraction(0)
    if found := _LENGTH.fullmatch(text):
        (unit,) = [unit for unit in _UNITS if found[unit]]
        seconds = Fraction(found[1]) * _UNITS[unit]
    elif found := _CLOCK.fullmatch(text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = Fraction(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    if not seconds:
        raise ConfigError(
            f"max_time: expected a time such as '2 h', '90 min', '45 s' or '1:30:00', got {max_time!r}; "
            f"max_time=null sets no limit"
        )
    return float(seconds)
