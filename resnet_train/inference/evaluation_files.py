"""What ``resnet-eval`` leaves in a folder: tables as CSV, pictures as PNG, all of it as ``eval.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resnet_train.errors import ConfigError, RunError
from resnet_train.inference.evaluation import Evaluation
from resnet_train.runs import pictures
from resnet_train.runs.atomic import write_atomically

SHOWN = 40  # mistakes on the sheet


def write_evaluation(folder: Path, evaluation: Evaluation, facts: dict[str, Any]) -> list[str]:
    """Write all files, ``eval.json`` last; returns notes on what was left out.

    Raises `RunError` where ``folder`` cannot be written.
    """
    scores, notes = evaluation.scores, []
    files: dict[str, bytes | str] = {
        "per_class.csv": table(
            ("class", "precision", "recall", "f1", "support"),
            ((one.name, *(f"{value:.6f}" for value in (one.precision, one.recall, one.f1)), one.support)
             for one in scores.per_class),
        ),
        "confusion.csv": table(
            ("label", *scores.classes),
            ((name, *row) for name, row in zip(scores.classes, scores.confusion, strict=True)),
        ),
        "reliability.csv": table(
            ("low", "high", "count", "confidence", "accuracy"),
            ((*(f"{value:.6f}" for value in (one.low, one.high)), one.count, f"{one.confidence:.6f}",
              f"{one.accuracy:.6f}") for one in scores.reliability),
        ),
        "mistakes.csv": mistakes_table(evaluation),
    }  # fmt: skip
    if len(evaluation.mistakes.index):
        files["mistakes.png"] = pictures.png(mistakes_sheet(evaluation))
    try:
        matrix = pictures.confusion_matrix(scores.confusion, scores.classes)
        bins = scores.plain()["reliability"]
        diagram = pictures.reliability_diagram(bins, calibration_error=scores.calibration_error)
        files |= {"confusion.png": png(matrix), "reliability.png": png(diagram)}
    except ConfigError as error:  # without matplotlib
        notes.append(f"confusion.png and reliability.png are left out: {error}")
    files["eval.json"] = json.dumps(facts | evaluation.plain(), indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("mistakes.png", "confusion.png", "reliability.png"):
            if old not in files:
                (folder / old).unlink(missing_ok=True)  # of an evaluation before
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror or error}; make it writable or add --output FOLDER"
        ) from error
    return notes


def png(figure: Any) -> bytes:
    """A plot as a PNG file."""
    return pictures.png(pictures.as_pixels(figure))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV as RFC 4180 has it, with the line ends of Unix."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def mistakes_table(evaluation: Evaluation) -> str:
    """Index, or path where images are files, label, prediction and confidence, the most confident mistake first."""
    found, paths, classes = evaluation.mistakes, evaluation.images.paths, evaluation.scores.classes
    rows = zip(
        found.index.tolist(), found.label.tolist(), found.predicted.tolist(), found.confidence.tolist(), strict=True
    )
    return table(
        ("path" if paths else "index", "label", "prediction", "confidence"),
        (
            (paths[index] if paths else index, classes[label], classes[predicted], f"{confidence:.6f}")
            for index, label, predicted, confidence in rows
        ),
    )


def mistakes_sheet(evaluation: Evaluation) -> Any:
    """The worst mistakes, each above what the network took it for, how sure it was, and the label."""
    found, classes = evaluation.mistakes, evaluation.scores.classes
    rows = zip(
        found.label[:SHOWN].tolist(), found.predicted[:SHOWN].tolist(), found.confidence[:SHOWN].tolist(), strict=True
    )
    captions = [f"{classes[predicted]} {100 * sure:.0f} %\nlabel {classes[label]}" for label, predicted, sure in rows]
    return pictures.sheet(evaluation.images.images[found.index[:SHOWN]].numpy(), captions)
