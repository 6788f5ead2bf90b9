"""What the time of a few updates goes into: a trace to look at, and a table of the dearest operations."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

SETTLING, RECORDED = 5, 10  # updates left alone at first, and recorded after them
DEAREST = 10

logger = logging.getLogger(__name__)


class Profiler:
    """Records some updates of a session, after its first ones; does nothing unless it is ``enabled``."""

    def __init__(self, directory: Path, device: torch.device, *, enabled: bool, updates_left: int) -> None:
        self._folder = directory / "profile"
        self._device = device
        settling = SETTLING if updates_left >= SETTLING + RECORDED else 0
        self._first, self._last = settling + 1, min(settling + RECORDED, updates_left)
        self._enabled = enabled and updates_left > 0
        self._updates = 0
        self._profile: profile | None = None

    def before_update(self, step: int) -> None:
        """Begin where it is time; ``step`` updates are completed."""
        self._updates += 1
        if self._enabled and self._updates == self._first:
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it calls the lack of a GPU an error
            cuda = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profile.start()
            self._from = step + 1

    def after_update(self, step: int) -> None:
        """Write the trace and the table where it is time; ``step`` updates are completed. Waits for the device then."""
        if self._profile is None or self._updates < self._last:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        done, self._profile, self._enabled = self._profile, None, False
        done.stop()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"updates-{self._from}-to-{step}.pt.trace.json"
        done.export_chrome_trace(str(path))
        for line in table(done, updates=step - self._from + 1):
            logger.info("%s", line)
        logger.info("trace of updates %d to %d, for https://ui.perfetto.dev: %s", self._from, step, path)


def table(done: profile, *, updates: int) -> list[str]:
    """The dearest operations, by the time spent in themselves: on the device where there is one, else on the CPU."""
    events = done.key_averages()
    on_device = any(event.self_device_time_total for event in events)
    spent = {
        event.key: (event.self_device_time_total if on_device else event.self_cpu_time_total, event.count)
        for event in events
    }
    total = sum(time for time, _ in spent.values()) or 1.0
    where = "device" if on_device else "CPU"
    lines = [f"{'dearest operations':48} {where + ' ms an update':>17} {'share':>7} {'calls an update':>16}"]
    for name, (time, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:DEAREST]:
        lines.append(f"{name[:48]:48} {time / 1000 / updates:17.3f} {time / total:7.1%} {count / updates:16.1f}")
    return lines
