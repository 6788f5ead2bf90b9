"""Loss and accuracy while a run trains: means over the steps since the last log and since the last end of an epoch."""

from __future__ import annotations

import math

import torch

from resnet_train.errors import RunError
from resnet_train.training.state import Progress
from resnet_train.training.step import StepOutput

_DIVERGED = (
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

    def read(self, step: int, grad_norm: torch.Tensor | None = None) -> int:
        """Read what is pending, the last of it from step number ``step``, and that step's ``grad_norm``, if given.

        Returns the number of steps read. Raises `RunError` that names the first step whose loss is not a finite
        number, or the last one if its gradient is not. So whoever saves after this, with ``grad_norm``, saves weights
        that are finite.
        """
        if not self._pending:
            return 0
        pairs = torch.stack([torch.stack((output.loss, output.accuracy)) for output in self._pending]).tolist()
        self._grad_norm = math.nan if grad_norm is None else grad_norm.item()
        first = step - len(pairs) + 1
        self._pending.clear()
        for number, (loss, _) in enumerate(pairs, start=first):
            if not math.isfinite(loss):
                raise RunError(f"the loss is {loss} at step {number}: {_DIVERGED}")
        if grad_norm is not None and not math.isfinite(self._grad_norm) and not self._skips_overflow:
            raise RunError(f"the gradient's norm is {self._grad_norm} at step {step}: {_DIVERGED}")
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
