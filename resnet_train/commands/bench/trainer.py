"""This project's batches and step, built and called as the training loop does, and where their time goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_train.config.run import Config
from resnet_train.runs import environment
from resnet_train.runs.checkpoint import Checkpoints
from resnet_train.runs.checkpoint_file import FORMAT
from resnet_train.seeding import set_deterministic
from resnet_train.training.loop import at_rest, evaluate_split, keep_memory
from resnet_train.training.profiling import device_times
from resnet_train.training.setup import build, build_step_options
from resnet_train.training.step import allow_tf32, train_step

LOOKED_AT = 10  # steps whose phases are timed


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Trainer:
    """The run that ``config`` describes, without its files."""

    def __init__(self, config: Config) -> None:
        self._config, self._run = config, build(config)
        set_deterministic(config.deterministic)
        allow_tf32(self._run.plan.precision)
        keep_memory(self._run.plan)
        self._device = self._run.plan.device
        self.num_train = len(self._run.train_data.split)

    def step(self) -> None:
        """One step."""
        images, labels = self._run.train_data.batch(self._run.state.step)
        self._run.train_step(images, labels, lr=self._config.optim.lr)

    def loop(self) -> Generator[None, None, None]:
        """One step for each item."""
        with at_rest():
            while True:
                self.step()
                yield

    def report(self) -> dict[str, Any]:
        """Where the time goes, what evaluation and a checkpoint cost, the most memory in use."""
        return {
            "phases": self.phases(),
            "idle": self.idle(),
            "evaluation": self.evaluation(),
            "checkpoint": self.checkpoint(),
            "peak_memory_bytes": environment.peak_memory_bytes(self._device, graph=self._run.plan.graph),
            "choices": dict(self._run.plan.lines()),
        }

    def phases(self) -> dict[str, float]:
        """Fraction of the time in data, forward, backward (with the loss), optimizer and the rest.

        The step is the product's own: its phases end where it calls the network and the optimizer. On a GPU each waits
        for the device, which makes the sum longer than an undisturbed step, and the step is not the one of a CUDA
        graph, which has no inside.
        """
        spent = dict.fromkeys(("data", "forward", "backward", "optimizer", "other"), 0.0)
        since = 0.0

        def mark(phase: str) -> None:
            nonlocal since
            wait(self._device)
            now = time.perf_counter()
            spent[phase] += now - since
            since = now

        def forward(images: Tensor) -> Tensor:
            mark("other")
            logits: Tensor = self._run.forward(images)
            mark("forward")
            return logits

        state, options = self._run.state, build_step_options(self._config, self._run.plan)
        handles = [
            state.optimizer.register_step_pre_hook(lambda *_: mark("backward")),
            state.optimizer.register_step_post_hook(lambda *_: mark("optimizer")),
        ]
        with at_rest():
            for _ in range(LOOKED_AT):
                wait(self._device)
                since = time.perf_counter()
                images, labels = self._run.train_data.batch(state.step)
                mark("data")
                train_step(state, images, labels, lr=self._config.optim.lr, options=options, forward=forward)
                mark("other")
        for handle in handles:
            handle.remove()
        total = sum(spent.values())
        return {phase: seconds / total for phase, seconds in spent.items()}

    def idle(self) -> float:
        """Fraction of the time in which the device had nothing to do: of all cores, or of the GPU between kernels."""
        if self._device.type == "cuda":
            activity = torch.profiler.ProfilerActivity
            activities = [activity.CPU, activity.CUDA]
            with torch.profiler.profile(activities=activities, acc_events=True) as recorded:  # else torch warns
                begun = time.perf_counter()
                self._steps()
                seconds = time.perf_counter() - begun
            busy = sum(microseconds for microseconds, _ in device_times(recorded.key_averages()).values()) / 1e6
            return max(0.0, 1 - busy / seconds)
        begun, used = time.perf_counter(), time.process_time()
        self._steps()
        seconds = time.perf_counter() - begun
        return max(0.0, 1 - (time.process_time() - used) / seconds / torch.get_num_threads())

    def _steps(self) -> None:
        with at_rest():
            for _ in range(LOOKED_AT):
                self.step()
            wait(self._device)

    def evaluation(self) -> dict[str, float]:
        """Seconds for all test images, the second time: libraries have chosen their algorithms by then."""
        evaluate_split(self._run, self._run.state.eval_model, "test")
        begun = time.perf_counter()
        result = evaluate_split(self._run, self._run.state.eval_model, "test")
        return {"images": result.count, "seconds": time.perf_counter() - begun}

    def checkpoint(self) -> dict[str, float]:
        """Seconds that training stands still for a checkpoint, seconds until it is on disk, and its size."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), keep=1)
            stops, wholes = [], []
            for step in range(3):
                begun = time.perf_counter()
                checkpoints.begin_save({"format": FORMAT, "state": self._run.state.state_dict()}, step=step)
                stops.append(time.perf_counter() - begun)
                checkpoints.finish()
                wholes.append(time.perf_counter() - begun)
            size = (Path(folder) / "last.pt").stat().st_size
        return {"stops_seconds": sorted(stops)[1], "written_seconds": sorted(wholes)[1], "bytes": size}
