"""Pictures of a run's result, in TensorBoard: which classes it mixes up, and its worst mistakes."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_train.errors import ConfigError
from resnet_train.runs.console import printable
from resnet_train.runs.pictures import as_pixels, confusion_matrix, sheet
from resnet_train.runs.tensorboard import TensorBoard
from resnet_train.training.scores import mistakes, score
from resnet_train.training.setup import Run

CONFUSION_TAG, MISTAKES_TAG = "test/confusion matrix", "test/worst mistakes"
NUM_MISTAKES, COLUMNS = 32, 8  # on the sheet
FEWEST_IMAGES = 100  # of fewer they say little, and they take half a second
MOST_LOGITS = 1 << 25  # that are kept of an evaluation: 128 MiB

logger = logging.getLogger(__name__)


def can_keep_logits(run: Run, split: str) -> bool:
    """Whether the logits of a split are few enough to be kept."""
    return len(run.eval_data[split].split) * len(run.classes) <= MOST_LOGITS


class ResultPictures:
    """The logits of the result, from the evaluation that gave it, until they are drawn."""

    def __init__(self, tensorboard: TensorBoard) -> None:
        self._tensorboard = tensorboard
        self._logits: Tensor | None = None
        self.missing = True

    def keep(self, logits: Tensor | None) -> None:
        """Take the logits ``(N, classes)`` of all test images; None where there are too many."""
        self._logits, self.missing = logits, False

    def draw(self, run: Run) -> None:
        """Show the pictures of the result, at the last step. Where one cannot be drawn, the log says why."""
        logits, self._logits = self._logits, None
        split, step = run.eval_data["test"].split, run.last_step
        if logits is None or len(split) < FEWEST_IMAGES:
            much = f"at least {FEWEST_IMAGES} test images, and at most {MOST_LOGITS:,} of images times classes"
            logger.info("no pictures of the result in TensorBoard: they take %s", much)
            return
        try:
            labels, classes = split.labels.cpu(), tuple(map(printable, run.classes))
            page = mistakes_sheet(split.images, logits, labels, classes)
            if page is not None:
                self._tensorboard.write_picture(MISTAKES_TAG, page, step=step)
            confusion = score(logits, labels, classes=classes).confusion
            self._tensorboard.write_picture(CONFUSION_TAG, as_pixels(confusion_matrix(confusion, classes)), step=step)
        except ConfigError as error:
            logger.info("no confusion matrix in TensorBoard: %s", error)
        except Exception as error:  # of libraries that draw, and of memory: nothing that a trained network may fail by
            logger.warning("cannot draw the result for TensorBoard: %s: %s", type(error).__name__, error)


def mistakes_sheet(
    images: Tensor, logits: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> NDArray[np.uint8] | None:
    """The most confident mistakes, each above what it was taken for and what it is; None where there is none.

    ``images``: uint8 ``(N, H, W, C)``.
    """
    found = mistakes(logits, labels)
    index, confidence = found.index[:NUM_MISTAKES], found.confidence.tolist()
    if not len(index):
        return None
    captions = [
        f"{classes[predicted]} {100 * sure:.1f} %\nlabel {classes[label]}"
        for predicted, sure, label in zip(found.predicted.tolist(), confidence, found.label.tolist(), strict=True)
    ]
    pixels = images[index.to(images.device)].to("cpu", torch.uint8)
    return sheet(pixels.numpy(), captions[: len(index)], columns=COLUMNS)
