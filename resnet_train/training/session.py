"""One process's part of a run: begun in its directory or continued there, with its clock and its files."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnet_train.config.run import Config
from resnet_train.runs.atomic import remove_leftovers
from resnet_train.runs.checkpoint import Checkpoints
from resnet_train.runs.checkpoint_file import FORMAT
from resnet_train.runs.console import count
from resnet_train.runs.directory import Invocation, lasting, write_config
from resnet_train.runs.history import History
from resnet_train.runs.lock import Lock
from resnet_train.runs.metrics_table import MetricsTable, Row
from resnet_train.runs.resume import choose_checkpoint
from resnet_train.runs.saved import Notice, kept_invocation
from resnet_train.runs.tensorboard import TensorBoard
from resnet_train.training.class_balance import corrected_twice
from resnet_train.training.clock import Clock
from resnet_train.training.diagnostics import Diagnostics
from resnet_train.training.profiling import Profiler
from resnet_train.training.restore import begin_with, load_history, restore
from resnet_train.training.result_pictures import ResultPictures
from resnet_train.training.setup import Run

SMALL = 64  # pixels of a side, below which the stem of ImageNet is not made for images


@dataclass(frozen=True)
class Session:
    """Where numbers and weights of a run go, and its time."""

    directory: Path
    lock: Lock  # of the directory
    command: str
    notices: list[Notice]  # what to announce
    forced: list[str]  # changes that resume_force let through
    config: dict[str, Any]  # resolved and plain, for the checkpoints
    invocation: Invocation | None
    clock: Clock
    history: History
    checkpoints: Checkpoints
    table: MetricsTable
    tensorboard: TensorBoard
    pictures: ResultPictures
    diagnostics: Diagnostics
    profiler: Profiler

    def write(self, step: int, row: Row, *, images_per_second: float | None = None) -> None:
        """Write a row to ``metrics.csv`` and to TensorBoard; the throughput to the latter alone."""
        self.lock.check()
        self.table.write(step, row)
        throughput = {} if images_per_second is None else {"throughput/images_per_second": images_per_second}
        self.history.add(step, row | throughput)
        self.tensorboard.write(step, row | throughput)

    def sync(self) -> None:
        """Wait until all numbers are on disk: nothing writes them again once the summary says that the run finished."""
        self.table.sync()
        self.tensorboard.sync()

    def save(self, run: Run, *, best: bool = False) -> None:
        """Begin to write a checkpoint of this moment; it is on disk when the next one begins, or `fit` returns."""
        self.lock.check()
        self.checkpoints.begin_save(self.content(run), step=run.state.step, best=best)

    def content(self, run: Run) -> dict[str, Any]:
        """All that the run is, and how far it is: what stands in other files can be made of it again."""
        return {
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
            "invocation": None if self.invocation is None else asdict(self.invocation),
            "history": self.history.state_dict(),
        }


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
    history = None
    if resumed is not None:
        notices = restore(state, clock, resumed, total_steps=total_steps)
        history = load_history(resumed, steps=state.step)
    elif config.init_from:
        notices = begin_with(state, Path(config.init_from), classes=run.classes)
    if resumed is None:
        notices += cautions(run, config)
    elif state.step < run.last_step:
        lr = run.lr_schedule(state.step)
        notices.append((logging.INFO, f"the learning rate continues at {lr:.4g}, towards {count(total_steps)} steps"))
    lock.check()
    # Only now is it certain that this run can continue: what stood in its directory until here was left alone.
    remove_leftovers(directory, own=r"config\.yaml|metrics\.csv|summary\.json")
    remove_leftovers(checkpoints.folder, own=r".*")
    table, history = open_table(run, directory, history)
    invocation = invocation or (None if resumed is None else kept_invocation(resumed.content))
    from_step = min(state.step, run.last_step - 1)  # with all steps made, the last one's numbers are written once more
    overrides = None if invocation is None else invocation.distinguishing
    tensorboard = TensorBoard(directory, config, from_step=from_step, measured=history, overrides=overrides)
    session = Session(
        directory=directory,
        lock=lock,
        command=command,
        notices=notices,
        forced=[] if resumed is None else resumed.forced,
        config=lasting(config),
        invocation=invocation,
        clock=clock,
        history=history,
        checkpoints=checkpoints,
        table=table,
        tensorboard=tensorboard,
        pictures=ResultPictures(tensorboard),
        diagnostics=Diagnostics(tensorboard, enabled=config.diagnostics),
        profiler=Profiler(directory, run.plan.device, enabled=config.profile, steps_left=run.last_step - state.step),
    )
    if resumed is not None and resumed.changed:
        # What a run is and how far it is changes in this one step: whenever it is killed, the checkpoint says both.
        checkpoints.save(session.content(run), step=state.step)
    write_config(config, directory)
    if session.invocation is not None:
        session.invocation.write(directory)
    show_beginning(run, session, config)
    if resumed is None:
        session.save(run)
    return session


def show_beginning(run: Run, session: Session, config: Config) -> None:
    """Show the first batch, and with diagnostics the graph, unless an earlier session did."""
    if not session.tensorboard.shows_images:
        images, _ = run.train_data.batch(0)
        session.tensorboard.write_images(images, mean=config.dataset.mean, std=config.dataset.std)
    session.diagnostics.begin(config.model, run)


def cautions(run: Run, config: Config) -> list[Notice]:
    """What somebody who begins ``run`` may not have meant."""
    texts = []
    if config.freeze and not config.init_from:
        texts.append(
            "freeze keeps random weights, since nothing was loaded; name a run or a file of weights with init_from"
        )
    stem = getattr(config.model, "stem", "cifar")
    if stem == "imagenet" and run.image_size < SMALL:
        size, left = run.image_size, -(-run.image_size // 4)
        texts.append(
            f"model.stem=imagenet (7x7 with stride 2, then max-pooling) leaves {left}x{left} of {size}x{size} pixels "
            f"to the first block; model.stem=cifar, one 3x3 convolution, leaves all of them"
        )
    if config.balanced_sampling:
        texts.append(corrected_twice(config.class_weights, run.train_data.split.labels, run.classes))
    return [(logging.WARNING, text) for text in texts if text]


def open_table(run: Run, directory: Path, history: History | None) -> tuple[MetricsTable, History]:
    """``metrics.csv`` up to the steps that are done, and all that was measured; ``history`` is the checkpoint's."""
    step = run.state.step
    table = MetricsTable(directory / "metrics.csv", from_step=step, measured=None if history is None else history.rows)
    history = history or History()
    for number, row in table.rows.items():
        history.add(number, row)
    if step == run.last_step and run.watched == "val":  # `score_best` is about to write these
        for tag in ("loss/test", "accuracy/test"):
            history.rows.get(step, {}).pop(tag, None)
    return table, history
