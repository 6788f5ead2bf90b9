"""What the time of a few steps goes into: a trace to look at, and a table of the most expensive operators."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from resnet_train.runs.atomic import replacing

SETTLING, RECORDED = 5, 10  # steps left alone at first, and recorded after them
NUM_OPERATORS = 10

logger = logging.getLogger(__name__)


class Profiler:
    """Records some steps of a session, after its first ones; does nothing unless it is ``enabled``."""

    def __init__(self, directory: Path, device: torch.device, *, enabled: bool, steps_left: int) -> None:
        self._folder = directory / "profile"
        self._device = device
        settling = SETTLING if steps_left >= SETTLING + RECORDED else 0
        self._first, self._last = settling + 1, min(settling + RECORDED, steps_left)
        self._enabled = enabled and steps_left > 0
        self._steps = 0
        self._profile: profile | None = None

    def before_step(self, step: int) -> None:
        """Begin where it is time; ``step`` steps are completed."""
        self._steps += 1
        if self._enabled and self._steps == self._first:
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it calls the lack of a GPU an error
            cuda = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True)  # else torch warns
            self._profile.start()
            self._from = step + 1

    def after_step(self, step: int) -> None:
        """Write the trace and the table where it is time; ``step`` steps are completed. Waits for the device then."""
        if self._profile is None or self._steps < self._last:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        done, self._profile, self._enabled = self._profile, None, False
        done.stop()
        if self._folder.is_symlink():
            logger.warning("no trace is written: %s is a link, which is not followed; remove it", self._folder)
            return
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"steps-{self._from}-to-{step}.pt.trace.json"
        with replacing(path) as temporary:
            done.export_chrome_trace(str(temporary))
        for line in most_expensive_operators(done, steps=step - self._from + 1):
            logger.info("%s", line)
        logger.info("trace of steps %d to %d, for https://ui.perfetto.dev: %s", self._from, step, path)


def device_times(events: Iterable[Any]) -> dict[str, tuple[float, int]]:
    """Microseconds on the device and calls, by operator; by kernel where kernels were launched without any (a graph).

    ``events`` are averages by key, where each kernel stands twice: by itself, and in the time of its operator.
    """
    by_operator, by_kernel = (
        {
            event.key: (event.self_device_time_total, event.count)
            for event in events
            if event.self_device_time_total and (event.device_type == DeviceType.CPU) == operators
            and not getattr(event, "is_user_annotation", False)
        }
        for operators in (True, False)
    )  # fmt: skip
    launched, whole = (sum(time for time, _ in one.values()) for one in (by_operator, by_kernel))
    return by_operator if launched > 0.9 * whole else by_kernel


def most_expensive_operators(done: profile, *, steps: int) -> list[str]:
    """A table of operators by self time: on the device where there is one, else on the CPU."""
    events = done.key_averages()
    spent = device_times(events)
    on_device = bool(spent)
    if not on_device:
        spent = {event.key: (event.self_cpu_time_total, event.count) for event in events}
    total = sum(time for time, _ in spent.values()) or 1.0
    where = "device" if on_device else "CPU"
    lines = [f"{'most expensive operators':48} {where + ' ms per step':>18} {'share':>7} {'calls per step':>16}"]
    for name, (time, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:NUM_OPERATORS]:
        lines.append(f"{name[:48]:48} {time / 1000 / steps:18.3f} {time / total:7.1%} {count / steps:16.1f}")
    return lines
