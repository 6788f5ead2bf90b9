"""Loss and accuracy while a run trains: means over the steps since the last log and since the last end of an epoch."""

from __future__ import annotations

import math

import torch

from resnet_train.errors import RunError
from resnet_train.training.state import Progress
from resnet_train.training.step import Health, StepOutput

DIVERGED = (
    "training has diverged. Start again with a smaller optim.lr, a warm-up (schedule.warmup=5) or clip_grad_norm=1; "
    "the last checkpoint is from before it"
)


class TrainMetrics:
    """Loss and accuracy of the steps, kept on the device until somebody reads them, all in one synchronisation."""

    def __init__(self, progress: Progress, *, skips_overflow: bool = False) -> None:
        """Continue from ``progress``; with ``skips_overflow`` an overflowing gradient is a skipped step, no error."""
        self.progress = progress
        self._skips_overflow = skips_overflow
        self._pending: list[StepOutput] = []
        self._grad_norm = math.nan

    def add(self, output: StepOutput) -> None:
        """Take the results of one step, without reading them."""
        self._pending.append(output)

    def read(self, step: int, health: Health | None = None) -> int:
        """Read what is pending, the last of it from step number ``step``, and the ``health`` after it, if given.

        Returns the number of steps read. Raises `RunError` that names the first step whose loss is not a finite
        number, or the last one if its gradient or the state is not. So whoever saves after this, with ``health``, saves
        weights and statistics that are finite.
        """
        if not self._pending:
            return 0
        scalars = [scalar for output in self._pending for scalar in (output.loss, output.accuracy)]
        checked = [] if health is None else [health.grad_norm, health.largest]
        values = torch.stack(scalars + checked).tolist()
        pairs = [values[index : index + 2] for index in range(0, len(scalars), 2)]
        self._grad_norm, largest = values[len(scalars) :] if health is not None else (math.nan, 0.0)
        first = step - len(pairs) + 1
        self._pending.clear()
        for number, (loss, _) in enumerate(pairs, start=first):
            if not math.isfinite(loss):
                raise RunError(f"the loss is {loss} at step {number}: {DIVERGED}")
        if health is not None and not math.isfinite(self._grad_norm) and not self._skips_overflow:
            raise RunError(f"the gradient's norm is {self._grad_norm} at step {step}: {DIVERGED}")
        if health is not None and not math.isfinite(largest):
            raise RunError(f"{health.culprit()} is not finite at step {step}: {DIVERGED}")
        self.progress.window += pairs
        self.progress.epoch += pairs
        return len(pairs)

    def grad_norm(self) -> float:
        """Norm of the gradient in the last step that was read, before clipping; NaN where it was not given."""
        return self._grad_norm

    def peek(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last log, whose window stays open."""
        return _means(self.progress.window)

    def end_window(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last log; begins the next window."""
        return _means(_take(self.progress.window))

    def epoch_steps(self) -> int:
        """Steps that were read since the last end of an epoch."""
        return len(self.progress.epoch)

    def end_epoch(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last end of an epoch; begins the next epoch."""
        return _means(_take(self.progress.epoch))


def _take(pairs: list[list[float]]) -> list[list[float]]:
    taken = pairs[:]
    pairs.clear()
    return taken


def _means(pairs: list[list[float]]) -> tuple[float, float]:
    loss, accuracy = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return loss, accuracy
