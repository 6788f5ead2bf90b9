"""Predictions as lines of text, one by one: a table for people, CSV and JSON for programs. Without torch."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from resnet_train.runs.console import printable

if TYPE_CHECKING:
    from resnet_train.inference.classifier import Prediction

DIGITS = 6  # of a probability
LEAST_NAME, LEAST_CLASS, MOST_CLASS = 20, 8, 32  # columns of a table's cells
PERCENT = 8  # columns: two of space, then " 100.0"


class Rows(Protocol):
    """A form of output."""

    head: str  # lines in front of the first row

    def row(self, image: str, prediction: Prediction, file: Path | None) -> str:
        """The lines for an image; ``file`` is where it was sorted into."""
        ...


class Table:
    """The likeliest classes beside each image, in columns whose widths are known before the first row.

    With ``columns`` what is too long for the terminal is shortened, and where even that is not enough each image has a
    line for each class. Without, names are whole.
    """

    def __init__(self, classes: Sequence[str], *, top: int, longest_name: int, columns: int | None) -> None:
        self.top, self.upright = top, False
        widest = max(len("class"), *map(width_of, map(printable, classes)))
        self.class_width, self.name_width = widest, longest_name
        if columns is not None:
            room = (columns - LEAST_NAME) // top - PERCENT
            self.upright = room < min(widest, LEAST_CLASS)
            self.class_width = min(widest, columns - PERCENT if self.upright else max(room, LEAST_CLASS), MOST_CLASS)
            self.name_width = min(longest_name, columns - (0 if self.upright else top * (self.class_width + PERCENT)))
        self.name_width = max(self.name_width, len("image"))
        cells = [fitted("class", self.class_width) + "     %"] * top
        self.head = "" if self.upright else "  ".join([fitted("image", self.name_width), *cells]) + "\n"

    def row(self, image: str, prediction: Prediction, file: Path | None) -> str:  # noqa: ARG002 (a table has no room)
        """See `Rows`."""
        name = fitted(printable(image), self.name_width, keep_end=True)
        cells = [
            f"{fitted(printable(label), self.class_width)} {100 * probability:5.1f}"
            for label, probability in prediction.top(self.top)
        ]
        if self.upright:
            return "\n".join([name.rstrip(), *(f"  {cell}" for cell in cells)]) + "\n"
        return "  ".join([name, *cells]) + "\n"


class Csv:
    """``image,label,confidence,label_2,confidence_2,...``, then the probability of every class where that is wanted."""

    def __init__(self, classes: Sequence[str], *, top: int, everything: bool, sorted_too: bool) -> None:
        self.top, self.everything, self.sorted_too = top, everything, sorted_too
        ranks = [name for rank in range(2, top + 1) for name in (f"label_{rank}", f"confidence_{rank}")]
        all_classes = [f"p({name})" for name in classes] if everything else []
        self.head = _csv(["image", "label", "confidence", *ranks, *["file"] * sorted_too, *all_classes])

    def row(self, image: str, prediction: Prediction, file: Path | None) -> str:
        """See `Rows`."""
        likeliest = [cell for label, value in prediction.top(self.top) for cell in (label, _rounded(value))]
        probabilities = map(_rounded, prediction.probabilities if self.everything else ())
        return _csv([image, *likeliest, *[str(file)] * self.sorted_too, *probabilities])


class Json:
    """An object a line: ``image``, ``label``, ``index``, ``confidence``, ``top``, and what else is wanted."""

    head = ""

    def __init__(self, *, top: int, everything: bool) -> None:
        self.top, self.everything = top, everything

    def row(self, image: str, prediction: Prediction, file: Path | None) -> str:
        """See `Rows`."""
        top = [{"label": label, "probability": _rounded(value)} for label, value in prediction.top(self.top)]
        found = {"image": image, "label": prediction.label, "index": prediction.index}
        found |= {"confidence": _rounded(prediction.confidence), "top": top}
        if self.everything:
            found["probabilities"] = list(map(_rounded, prediction.probabilities))
        if file is not None:
            found["file"] = str(file)
        return json.dumps(found) + "\n"


def _rounded(probability: float) -> float:
    return round(probability, DIGITS)


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


# -------------------------------------------------------------------------------------------------- text in columns


def width_of(text: str) -> int:
    """Columns that a terminal takes for ``text``: two for each Chinese character."""
    return len(text) if text.isascii() else sum(map(_width_of_one, text))


def _width_of_one(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fitted(text: str, width: int, *, keep_end: bool = False) -> str:
    """``text`` in exactly ``width`` columns: with spaces behind it, or shortened by its end or its beginning."""
    left = width - width_of(text)
    if left >= 0:
        return text + " " * left
    kept, room = [], width - 1  # the dots
    for character in reversed(text) if keep_end else text:
        room -= _width_of_one(character)
        if room < 0:
            break
        kept.append(character)
    short = "…" + "".join(reversed(kept)) if keep_end else "".join(kept) + "…"
    return short + " " * (width - width_of(short))
