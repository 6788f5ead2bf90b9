"""How long a run is, and after which steps it does what."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from resnet_train.config.durations import Duration, due
from resnet_train.config.run import Config, check_lengths, steps_per_epoch, total_steps


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    log: bool
    epoch: bool  # an epoch has ended
    evaluation: bool
    checkpoint: bool
    signum: int | None  # the signal that asks to stop

    @property
    def anything(self) -> bool:
        """Whether the metrics have to be read from the device."""
        return self.log or self.epoch or self.evaluation or self.checkpoint


@dataclass(frozen=True)
class Timetable:
    """How long a run is, and when it does what."""

    total_steps: int
    steps_per_epoch: Fraction
    epochs: int | None  # the length as it was asked for; None where it was asked for in steps
    log_every: int  # steps
    eval_every: Duration
    checkpoint_every: Duration
    patience: int | None = None  # evaluations without a rise of the validation accuracy, after which the run ends
    min_delta: float = 0.0  # what is more than this is a rise

    def due(self, step: int, signum: int | None = None) -> Due:
        """What is due after ``step`` completed steps; all of it after the last, a checkpoint after a signal."""
        last = step == self.total_steps
        return Due(
            log=last or step % self.log_every == 0,
            epoch=last or due(step, 1, self.steps_per_epoch),
            evaluation=last or due(step, self.eval_every, self.steps_per_epoch),
            checkpoint=last or due(step, self.checkpoint_every, self.steps_per_epoch) or signum is not None,
            signum=signum,
        )


def build_timetable(config: Config, num_train: int) -> Timetable:
    """Lengths and intervals in steps; raises `ConfigError` where they do not fit ``num_train`` images."""
    check_lengths(config, num_train)
    return Timetable(
        total_steps=total_steps(config, num_train),
        steps_per_epoch=steps_per_epoch(config, num_train),
        epochs=config.epochs,
        log_every=config.log_every,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint.every,
        patience=config.early_stop.patience,
        min_delta=config.early_stop.min_delta,
    )
