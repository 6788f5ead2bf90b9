"""The numbers of a run as TensorBoard shows them, indexed by completed steps."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import re
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary as summaries

from resnet_train.config.run import Config
from resnet_train.runs.atomic import read_regular, sync
from resnet_train.runs.directory import lasting
from resnet_train.runs.history import History
from resnet_train.runs.metrics_table import Row
from resnet_train.runs.resume import CHANGEABLE, flatten

logger = logging.getLogger(__name__)

CONFIG_TAG, IMAGES_TAG = "config", "augmented training images"
MOST_BYTES = 1 << 32  # of an event file that is read again
# Training and evaluation on one chart each, in the tab "Custom scalars". Tags are regular expressions.
LAYOUT = {"train and test": {name: ["Multiline", [rf"{name}/(train|val|test)$"]] for name in ("loss", "accuracy")}}


class TensorBoard:
    """An event file of one session. A resumed run purges what was written after the step it continues from.

    It is written by the thread that trains, an event with each call, so that nothing waits in memory when the process
    is killed. Events that cannot be written are told in the log once and are not fatal; no more are written then.
    """

    def __init__(self, directory: Path, config: Config, *, from_step: int, measured: History | None = None) -> None:
        """Open a file for a run that has ``from_step`` completed steps.

        Where event files lack something of what was ``measured`` until then (after a power failure, say), this one
        replaces all from there on.
        """
        self._failed = False
        measured = measured or History()
        present = points(directory)
        complete = all(row.keys() <= present[step] for step, row in measured.rows.items() if step <= from_step)
        # Also the first session has to name a step to purge from, or readers would show the steps of later ones twice.
        shows_config = f"{CONFIG_TAG}/text_summary" in present[0]
        start = from_step + 1 if from_step and complete else int(shows_config)
        self.shows_images = start > 0 and IMAGES_TAG in present[0]
        with self._surviving():
            self.path = directory / next_name(directory)
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 (closed by close)
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
            # The session's start in this very file, so that the HParams tab shows a run while it trains. Without the
            # experiment that comes with it TensorBoard looks at all runs, and puts first in what they differ.
            _, session, _ = summaries.hparams(hparams(config), {})
            self._write(Event(step=0, summary=session))
            if not shows_config:
                text = f"```yaml\n{OmegaConf.to_yaml(asdict(config))}```"
                self._write(Event(step=0, summary=summaries.text(CONFIG_TAG, text)))
                self._write(Event(step=0, summary=summaries.custom_scalars(LAYOUT)))
        for step, row in measured.rows.items():
            if step >= start:
                self.write(step, row, at=measured.times[step])

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("cannot write events for TensorBoard: %s; the run continues without them", error)
            self._failed = True

    def _write(self, event: Event, *, at: float | None = None) -> None:
        event.wall_time = time.time() if at is None else at
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        data = record.getvalue()
        written = self._file.write(data)
        if written != len(data) and self._file.write(data[written:]) != len(data) - (written or 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, step: int, row: Row, *, at: float | None = None) -> None:
        """Write each number of ``row`` under its name, at ``step`` completed steps; measured now, or ``at`` a time."""
        if self._failed:
            return
        with self._surviving():
            for tag, value in row.items():
                self._write(Event(step=step, summary=summaries.scalar(tag, value)), at=at)

    def write_images(self, images: Tensor, *, mean: list[float], std: list[float]) -> None:
        """Show up to 64 normalised training images ``(B, C, H, W)`` as a grid, as the network sees them."""
        if self._failed:
            return
        with self._surviving():
            pixels = images[:64].float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
            grid = image_grid(pixels.clamp(0, 1))
            self._write(Event(step=0, summary=summaries.image(IMAGES_TAG, grid, dataformats="CHW")))

    def sync(self) -> None:
        """Wait until the events are on disk."""
        if not self._failed:
            with self._surviving():
                sync(self.path)

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


def next_name(directory: Path) -> str:
    """A name for an event file that stands behind all others: they are read in the order of their names.

    It holds the time, and more than that where the clock was set back since the session before.
    """
    numbers = [re.match(r"events\.out\.tfevents\.(\d{1,19})", path.name) for path in directory.glob("*tfevents*")]
    latest = max((int(found[1].ljust(19, "0")) for found in numbers if found), default=0)
    return f"events.out.tfevents.{max(time.time_ns(), latest + 1):019}.{socket.gethostname()}.{os.getpid()}"


def points(directory: Path) -> dict[int, set[str]]:
    """What TensorBoard shows of the event files in ``directory``: the tags at each step."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:  # purges what others wrote from there on
                for step in [step for step in found if step >= event.step]:
                    del found[step]
            found[event.step].update(value.tag for value in event.summary.value)
    return found


def read_events(path: Path) -> Iterator[Event]:
    """The events in a file, up to where it ends or is corrupt."""
    try:
        data = read_regular(path, limit=MOST_BYTES)
    except OSError:
        return
    position = 0
    while position + 12 <= len(data):  # length, its checksum; the data, and their checksum
        (length,) = struct.unpack_from("<Q", data, position)
        start, position = position + 12, position + 12 + length + 4
        if not length or position > len(data):
            return
        try:
            yield Event.FromString(data[start : position - 4])
        except Exception:  # protobuf's own, for bytes that are none
            return


def image_grid(images: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """Images ``(N, C, H, W)`` in rows of ``columns``: ``(3, height, width)``, with a black gap between them."""
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
        for key, value in flatten(lasting(config)).items()
        if value is not None and key not in CHANGEABLE - {"epochs", "steps", "precision"}
    }
