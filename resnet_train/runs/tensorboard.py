"""The numbers of a run as TensorBoard shows them, indexed by completed steps."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary as summaries

from resnet_train.config.run import Config
from resnet_train.runs.atomic import sync
from resnet_train.runs.directory import lasting
from resnet_train.runs.event_files import GRAPH_TAG, next_name, points
from resnet_train.runs.history import History
from resnet_train.runs.metrics_table import Row
from resnet_train.runs.resume import CHANGEABLE, flatten

logger = logging.getLogger(__name__)

CONFIG_TAG, IMAGES_TAG = "config", "augmented training images"
# Charts of several tags in the tab "Custom scalars". Tags are regular expressions.
LAYOUT = {
    "train, val and test": {name: ["Multiline", [rf"^{name}/(train|val|test)$"]] for name in ("loss", "accuracy")}
}
# Those of `training.diagnostics`. TensorBoard puts the first five tags of the alphabet into the columns of the HParams
# tab: these stand behind accuracy and loss there.
PER_CLASS_ACCURACY, GRADIENT_NORMS = "per class accuracy", "per layer gradient norm"
ACTIVATIONS = ("per layer activation mean", "per layer activation std", "per layer activation zeros")
DIAGNOSTICS_LAYOUT = {
    "diagnostics": {name: ["Multiline", [f"^{name}/"]] for name in (PER_CLASS_ACCURACY, GRADIENT_NORMS, *ACTIVATIONS)}
}
# Keys in the HParams tab whether or not they were given, so that runs can be compared by them.
ALWAYS_SHOWN = frozenset({"model.name", "optim.lr", "seed"})


@dataclass(frozen=True)
class Histogram:
    """How often values occur: ``counts`` in bins of equal width from ``low`` to ``high``."""

    low: float
    high: float
    counts: list[float]
    total: float  # sum of the values
    squares: float  # sum of their squares


class TensorBoard:
    """An event file of one session. A resumed run purges what was written after the step it continues from.

    It is written by the thread that trains, an event with each call, so that nothing waits in memory when the process
    is killed. Events that cannot be written are told in the log once and are not fatal; no more are written then.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        *,
        from_step: int,
        measured: History | None = None,
        overrides: Sequence[str] | None = None,
    ) -> None:
        """Open a file for a run that has ``from_step`` completed steps.

        Where event files lack something of what was ``measured`` until then (after a power failure, say), this one
        replaces all from there on. ``overrides``: what `hparams` takes.
        """
        self._failed = False
        measured = measured or History()
        present = points(directory)
        complete = all(
            {tag_of(key) for key in row} <= present[step] for step, row in measured.rows.items() if step <= from_step
        )
        # Also the first session has to name a step to purge from, or readers would show the steps of later ones twice.
        shows_config = f"{CONFIG_TAG}/text_summary" in present[0]
        start = from_step + 1 if from_step and complete else int(shows_config)
        self.shows_images = start > 0 and IMAGES_TAG in present[0]
        self.shows_graph = GRAPH_TAG in present[0]
        with self._surviving():
            self.path = directory / next_name(directory)
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 (closed by close)
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
            # The session's start in this very file, so that the HParams tab shows a run while it trains. Without the
            # experiment that comes with it TensorBoard looks at all runs, and puts first in what they differ.
            _, session, _ = summaries.hparams(hparams(config, overrides), {})
            self._write(Event(step=0, summary=session))
            if not shows_config:
                text = f"```yaml\n{OmegaConf.to_yaml(asdict(config))}```"
                self._write(Event(step=0, summary=summaries.text(CONFIG_TAG, text)))
                layout = LAYOUT | (DIAGNOSTICS_LAYOUT if config.diagnostics else {})
                self._write(Event(step=0, summary=summaries.custom_scalars(layout)))
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
        """Write each number of ``row`` at ``step`` completed steps (`tag_of`); measured now, or ``at`` a time."""
        if self._failed:
            return
        with self._surviving():
            for key, value in row.items():
                self._write(Event(step=step, summary=summaries.scalar(tag_of(key), value)), at=at)

    def write_images(self, images: Tensor, *, mean: list[float], std: list[float]) -> None:
        """Show up to 64 normalised training images ``(B, C, H, W)`` as a grid, as the network sees them."""
        if self._failed:
            return
        with self._surviving():
            pixels = images[:64].float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
            grid = image_grid(pixels.clamp(0, 1))
            self._write(Event(step=0, summary=summaries.image(IMAGES_TAG, grid, dataformats="CHW")))

    def write_picture(self, tag: str, pixels: NDArray[np.uint8], *, step: int) -> None:
        """Show an image ``(H, W, 3)``."""
        if self._failed:
            return
        with self._surviving():
            self._write(Event(step=step, summary=summaries.image(tag, pixels, dataformats="HWC")))

    def write_histograms(self, step: int, histograms: dict[str, Histogram]) -> None:
        """Show each histogram under its tag."""
        if self._failed:
            return
        with self._surviving():
            for tag, one in histograms.items():
                limits = np.linspace(one.low, one.high, len(one.counts) + 1)[1:].tolist()
                summary = summaries.histogram_raw(
                    tag, one.low, one.high, sum(one.counts), one.total, one.squares, limits, one.counts
                )
                self._write(Event(step=step, summary=summary))

    def write_graph(self, graph: GraphDef) -> None:
        """Show the graph of the network."""
        if self._failed:
            return
        with self._surviving():
            self._write(Event(step=0, graph_def=graph.SerializeToString()))

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


def image_grid(images: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """Images ``(N, C, H, W)`` in rows of ``columns``: ``(3, height, width)``, with a black gap between them."""
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = torch.zeros(3, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap) + gap, index % columns * (width + gap) + gap
        grid[:, top : top + height, left : left + width] = image
    return grid


def tag_of(key: str) -> str:
    """The tag of a column of metrics.csv: those without a group of their own are in "training"."""
    return key if "/" in key else f"training/{key}"


def hparams(config: Config, overrides: Sequence[str] | None = None) -> dict[str, float | str]:
    """Keys of the configuration as the flat numbers and texts that the HParams tab takes.

    ``overrides``: those that tell this run from others. What they name is taken, and what compares any two runs; of a
    run from Python, which has none, all that is set. What changes no result is left out.
    """
    everything = {
        key: value if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()
        for key, value in flatten(lasting(config)).items()
        if value is not None and key not in CHANGEABLE - {"epochs", "steps", "precision"}
    }
    if overrides is None:
        return everything
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    keys = {f"{key}.name" if f"{key}.name" in everything else key for key in given}  # model=resnet18: model.name
    parents = tuple(f"{key}." for key in keys)
    found = {key: value for key, value in everything.items() if key in ALWAYS_SHOWN | keys or key.startswith(parents)}
    if "experiment" in given:
        found["experiment"] = given["experiment"]
    return found
