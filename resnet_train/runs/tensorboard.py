"""The numbers of a run as TensorBoard shows them, indexed by completed steps."""

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
from resnet_train.runs.metrics_table import Row
from resnet_train.runs.resume import CHANGEABLE, flatten

logger = logging.getLogger(__name__)


class TensorBoard:
    """An event file of one session. A resumed run purges what was written after the step it continues from.

    It is written by the thread that trains, an event with each call, so that nothing waits in memory when the process
    is killed. Events that cannot be written are told in the log once and are not fatal; no more are written then.
    """

    def __init__(self, directory: Path, config: Config, *, from_step: int, metrics: tuple[str, ...]) -> None:
        """Open a file for a run that has ``from_step`` completed steps; ``metrics`` are the tags that rank runs."""
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
            logger.warning("cannot write events for TensorBoard: %s; the run continues without them", error)
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
        """Write each number of ``row`` under its name, at ``step`` completed steps."""
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
    """The configuration as the flat numbers and texts that the HParams tab takes, without what changes no result."""
    return {
        key: value if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()
        for key, value in flatten(asdict(config)).items()
        if value is not None and key not in CHANGEABLE - {"epochs", "steps", "precision"}
    }
