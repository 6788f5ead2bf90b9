"""One process's part of a run: begun in its directory or continued there, with its clock and its files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_train.config.run import Config
from resnet_train.runs.checkpoint import FORMAT, Checkpoints
from resnet_train.runs.console import count
from resnet_train.runs.directory import Invocation, resolved, write_config
from resnet_train.runs.lock import Lock
from resnet_train.runs.metrics_table import MetricsTable, Row
from resnet_train.runs.resume import Notice, choose_checkpoint
from resnet_train.runs.tensorboard import TensorBoard
from resnet_train.training.clock import Clock
from resnet_train.training.profiling import Profiler
from resnet_train.training.restore import begin_with, restore
from resnet_train.training.setup import Run


@dataclass(frozen=True)
class Session:
    """Where numbers and weights of a run go, and its time."""

    directory: Path
    lock: Lock  # of the directory
    command: str
    notices: list[Notice]  # what to announce
    forced: list[str]  # changes that resume_force let through
    config: dict[str, Any]  # resolved and plain, for the checkpoints
    clock: Clock
    checkpoints: Checkpoints
    table: MetricsTable
    tensorboard: TensorBoard
    profiler: Profiler

    def write(self, step: int, row: Row, *, images_per_second: float | None = None) -> None:
        """Write a row to ``metrics.csv`` and to TensorBoard; the throughput to the latter alone."""
        self.lock.check()
        self.table.write(step, row)
        throughput = {} if images_per_second is None else {"throughput/images_per_second": images_per_second}
        self.tensorboard.write(step, row | throughput)

    def save(self, run: Run, *, best: bool = False) -> None:
        """Begin to write a checkpoint of this moment; it is on disk when the next one begins, or `fit` returns."""
        self.lock.check()
        content = {
            "format": FORMAT,
            "state": run.state.state_dict(),
            "config": self.config,
            "precision": run.facts.precision,
            "device": run.facts.device,
            "kernels": run.facts.kernels,
            "forced": self.forced,
            "classes": list(run.classes),
            "data": run.data.plain(),
            "versions": run.facts.versions,
            "clock": self.clock.state_dict(),
        }
        self.checkpoints.begin_save(content, step=run.state.step, best=best)


def open_session(
    run: Run, config: Config, directory: Path, *, lock: Lock, clock: Clock, command: str, invocation: Invocation | None
) -> Session:
    """Continue the run in ``directory`` from its newest checkpoint, or begin it there.

    Raises `ConfigError` where it cannot continue; then nothing in ``directory`` has been changed.
    """
    state, total_steps = run.state, run.timetable.total_steps
    checkpoints = Checkpoints(directory / "checkpoints", keep=config.checkpoint.keep)
    resumed = choose_checkpoint(
        config, directory, checkpoints, precision=run.facts.precision, kernels=run.facts.kernels, data=run.data
    )
    notices: list[Notice] = []
    if resumed is not None:
        notices = restore(state, clock, resumed, total_steps=total_steps)
    elif config.init_from:
        notices = begin_with(state, Path(config.init_from), classes=run.classes)
    if resumed is not None and state.step < total_steps:
        lr = run.lr_schedule(state.step)
        notices.append((logging.INFO, f"the learning rate continues at {lr:.4g}, towards {count(total_steps)} steps"))
    lock.check()
    # Only now is it certain that this run can continue: what stood in its directory until here was left alone.
    write_config(config, directory)
    if invocation is not None:
        invocation.write(directory)
    session = Session(
        directory=directory,
        lock=lock,
        command=command,
        notices=notices,
        forced=[] if resumed is None else resumed.forced,
        config=resolved(config),
        clock=clock,
        checkpoints=checkpoints,
        table=MetricsTable(directory / "metrics.csv", from_step=state.step),
        # With all steps made and the run not finished, the last step's numbers are written once more below.
        tensorboard=TensorBoard(
            directory,
            config,
            from_step=min(state.step, total_steps - 1),
            metrics=tuple(f"accuracy/{split}" for split in run.eval_data),
        ),
        profiler=Profiler(directory, run.plan.device, enabled=config.profile, steps_left=total_steps - state.step),
    )
    if state.step == total_steps:
        chosen = ("loss/test", "accuracy/test") if run.watched == "val" else ()  # `score_best` is about to write them
        row = {tag: value for tag, value in session.table.row.items() if tag not in chosen}
        session.tensorboard.write(total_steps, row)
    if resumed is None:
        images, _ = run.train_data.batch(0)
        session.tensorboard.write_images(images, mean=config.dataset.mean, std=config.dataset.std)
        session.save(run)
    return session
