"""Where the numbers of a run go: ``metrics.csv`` and TensorBoard, both indexed by completed updates."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary as summaries

from resnet_train.config.run import Config
from resnet_train.engine import StepOutput
from resnet_train.errors import RunError
from resnet_train.resume import CHANGEABLE, flatten
from resnet_train.state import Progress

logger = logging.getLogger(__name__)

Row = dict[str, float]
# Columns of metrics.csv. Nothing that depends on the clock is among them: two runs of one configuration on one machine
# write the same file, to the byte. What does depend on it (throughput) goes to TensorBoard alone.
COLUMNS = (
    "epoch",
    "lr",
    "loss/train",
    "accuracy/train",
    "gradient_norm",
    "loss/val",
    "accuracy/val",
    "loss/test",
    "accuracy/test",
)

_DIVERGED = (
    "training has diverged. Start again with a smaller optim.lr, a warm-up (schedule.warmup=5) or clip_grad_norm=1; "
    "the last checkpoint is from before it"
)


class TrainMetrics:
    """Loss and accuracy of the updates, kept on the device until somebody reads them, all in one synchronisation."""

    def __init__(self, progress: Progress, *, skips_overflow: bool = False) -> None:
        """Go on from ``progress``; with ``skips_overflow`` a gradient that overflows is no error, but no update."""
        self.progress = progress
        self._skips_overflow = skips_overflow
        self._pending: list[StepOutput] = []
        self._grad_norm = math.nan

    def add(self, output: StepOutput) -> None:
        """Take the results of one update, without reading them."""
        self._pending.append(output)

    def read(self, step: int, grad_norm: torch.Tensor | None = None) -> None:
        """Read what is pending, the last of it from update number ``step``, and that update's ``grad_norm``, if given.

        Raises `RunError` that names the first update whose loss is not a finite number, or the last one if its
        gradient is not. So whoever saves after this, with ``grad_norm``, saves weights that are finite.
        """
        if not self._pending:
            return
        pairs = torch.stack([torch.stack((output.loss, output.accuracy)) for output in self._pending]).tolist()
        self._grad_norm = math.nan if grad_norm is None else grad_norm.item()
        first = step - len(pairs) + 1
        self._pending.clear()
        for number, (loss, _) in enumerate(pairs, start=first):
            if not math.isfinite(loss):
                raise RunError(f"the loss is {loss} at update {number}: {_DIVERGED}")
        if grad_norm is not None and not math.isfinite(self._grad_norm) and not self._skips_overflow:
            raise RunError(f"the gradient's norm is {self._grad_norm} at update {step}: {_DIVERGED}")
        self.progress.window += pairs
        self.progress.epoch += pairs

    def grad_norm(self) -> float:
        """Norm of the gradient in the last update that was read, before clipping; NaN where it was not given."""
        return self._grad_norm

    def peek(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last log, which goes on."""
        return _means(self.progress.window)

    def end_window(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last log; begins the next window."""
        return _means(_take(self.progress.window))

    def epoch_updates(self) -> int:
        """Updates that were read since the last end of an epoch."""
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


class MetricsTable:
    """``metrics.csv``: one row for each step at which something was measured, empty cells for what was not."""

    def __init__(self, path: Path, *, from_step: int) -> None:
        """Open the table of a run that has ``from_step`` completed updates; rows from after that are taken out."""
        self.path = path
        self.step = -1  # of the last row
        self.row: Row = {}  # the last row
        rows = [",".join(("step", *COLUMNS))]
        if path.exists():
            for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
                try:
                    number, *cells = line.split(",")
                    step = int(number)
                    row = {key: float(cell) for key, cell in zip(COLUMNS, cells, strict=True) if cell}
                except ValueError:
                    logger.warning("a row of %s is damaged and left out: %.80r", path, line)
                    continue
                if step <= from_step:
                    rows.append(line)
                    self.step, self.row = step, row
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(f"{row}\n" for row in rows))
        os.replace(temporary, path)
        self._end = path.stat().st_size
        self._last_row_at = self._end - (len(rows[-1]) + 1)

    def write(self, step: int, row: Row) -> None:
        """Append a row, or complete the last one if it is of the same step; keys not among `COLUMNS` are left out.

        A row that cannot be written is told in the log, and ends no run.
        """
        row = self.row | row if step == self.step else row
        cells = (f"{row[column]:.9g}" if column in row else "" for column in COLUMNS)
        line = ",".join((str(step), *cells)).encode() + b"\n"
        start = self._last_row_at if step == self.step else self._end
        try:
            with open(self.path, "r+b", buffering=0) as file:
                file.seek(start)
                written = file.write(line)
                if written != len(line) and file.write(line[written:]) != len(line) - written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file.truncate()  # the row that it completes may have been longer
        except OSError as error:
            # What was written of it is overwritten by the next row, or left out when the run is taken up again.
            logger.warning("cannot write the row of update %d to %s: %s; the run goes on", step, self.path, error)
            return
        self.step, self.row = step, row
        self._last_row_at, self._end = start, start + len(line)


class TensorBoard:
    """An event file of one session. A resumed run purges what was written after the step it goes on from.

    It is written by the thread that trains, an event with each call, so that nothing waits in memory when the process
    is killed. Events that cannot be written are told in the log once, and end no run; there are no more of them then.
    """

    def __init__(self, directory: Path, config: Config, *, from_step: int, metrics: tuple[str, ...]) -> None:
        """Open a file for a run that has ``from_step`` completed updates; ``metrics`` are the tags that rank runs."""
        self._failed = False
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        with self._surviving():
            self._file = open(directory / name, "xb", buffering=0)  # noqa: SIM115 (closed by close)
            self._write(Event(file_version="brain.Event:2"))
            # Also the first session has to name a step to purge from, or readers would show the steps of later ones
            # twice.
            start_step = from_step + 1 if from_step else 0
            self._write(Event(step=start_step, session_log=SessionLog(status=SessionLog.START)))
            # Experiment and session start, in this very file, so that the HParams tab shows a run while it trains.
            experiment, start, _ = summaries.hparams(hparams(config), dict.fromkeys(metrics, 0.0))
            self._write(Event(step=0, summary=experiment))
            self._write(Event(step=0, summary=start))
            if not from_step:
                lines = (f"    {key}: {value}" for key, value in flatten(asdict(config)).items())
                self._write(Event(step=0, summary=summaries.text("config", "\n".join(lines))))

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("cannot write events for TensorBoard: %s; the run goes on without them", error)
            self._failed = True

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        data = record.getvalue()
        written = self._file.write(data)
        if written != len(data) and self._file.write(data[written:]) != len(data) - (written or 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, step: int, row: Row) -> None:
        """Write each number of ``row`` under its name, at ``step`` completed updates."""
        if self._failed:
            return
        with self._surviving():
            for tag, value in row.items():
                self._write(Event(step=step, summary=summaries.scalar(tag, value)))

    def write_images(self, images: Tensor, *, mean: list[float], std: list[float]) -> None:
        """Show up to 64 normalised training images ``(B, 3, H, W)`` as a grid, as the network sees them."""
        if self._failed:
            return
        with self._surviving():
            pixels = images[:64].float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
            grid = image_grid(pixels.clamp(0, 1))
            self._write(Event(step=0, summary=summaries.image("augmented training images", grid, dataformats="CHW")))

    def close(self, status: str) -> None:
        """End the file; ``finished`` ends the session in the HParams tab.

        A run that failed or was interrupted may be resumed, and TensorBoard would show its first end forever.
        """
        if self._failed:
            return
        with self._surviving():
            if status == "finished":
                end = SessionEndInfo(status=Status.STATUS_SUCCESS, end_time_secs=time.time())
                value = Summary.Value(
                    tag=SESSION_END_INFO_TAG,
                    metadata=create_summary_metadata(HParamsPluginData(session_end_info=end)),
                )
                self._write(Event(step=0, summary=Summary(value=[value])))
            self._file.close()


def image_grid(images: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """Images ``(N, 3, H, W)`` in rows of ``columns``: ``(3, height, width)``, with a black gap between them."""
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = torch.zeros(3, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap) + gap, index % columns * (width + gap) + gap
        grid[:, top : top + height, left : left + width] = image
    return grid


def hparams(config: Config) -> dict[str, float | str]:
    """The configuration as the flat numbers and words that the HParams tab takes, without what changes no result."""
    return {
        key: value if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()
        for key, value in flatten(asdict(config)).items()
        if value is not None and key not in CHANGEABLE - {"epochs", "steps", "precision"}
    }
