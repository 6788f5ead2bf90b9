"""All that a run has measured so far, as its checkpoints hold it: metrics.csv and events can be made of it again."""

from __future__ import annotations

import time
from typing import Any

import torch

from resnet_train.runs.metrics_table import Row


class History:
    """The measured numbers of each step, and when they were measured (seconds since 1970)."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}  # step: tag: value; in the order of the steps
        self.times: dict[int, float] = {}

    def add(self, step: int, row: Row, *, at: float | None = None) -> None:
        """Take ``row``; a step that is there already is completed."""
        self.rows[step] = self.rows.get(step, {}) | row
        self.times.setdefault(step, time.time() if at is None else at)

    def state_dict(self) -> dict[str, Any]:
        """A few tensors: ``tags`` are the columns of ``values`` (steps, tags), of which those in ``measured`` count."""
        tags = sorted({tag for row in self.rows.values() for tag in row})
        shape = len(self.rows), len(tags)
        return {
            "tags": tags,
            "steps": torch.tensor(list(self.rows), dtype=torch.int64),
            "times": torch.tensor(list(self.times.values()), dtype=torch.float64),
            "measured": torch.tensor([tag in row for row in self.rows.values() for tag in tags]).reshape(shape).bool(),
            "values": torch.tensor(
                [row.get(tag, 0.0) for row in self.rows.values() for tag in tags], dtype=torch.float64
            ).reshape(shape),
        }

    @classmethod
    def of(cls, saved: dict[str, Any], *, steps: int) -> History:
        """What `state_dict` returned, up to ``steps``; raises where it is something else."""
        history = cls()
        tags = [str(tag) for tag in saved["tags"]]
        columns = (saved[name].tolist() for name in ("steps", "times", "measured", "values"))
        for step, at, measured, values in zip(*columns, strict=True):
            if step <= steps:
                found = zip(tags, measured, values, strict=True)
                history.add(int(step), {tag: float(value) for tag, there, value in found if there}, at=float(at))
        return history
