"""What ``resnet-eval`` left in ``RUN/eval/NAME``, read for the page: checked, since it may be cut or a stranger's."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from resnet_train.runs.atomic import read_regular

MOST_CLASSES, MOST_MISTAKES = 1000, 50
MOST_PIXELS, SHEET_BYTES = 1 << 25, 150_000
SHEETS = ((1200, 85), (1200, 60), (900, 60), (600, 50), (300, 50))  # width and quality, until one fits
FIGURES = ("accuracy", "error", "top5", "loss", "balanced_accuracy", "calibration_error")
TEXTS = ("split", "checkpoint", "tta", "runs_on")


class Room:
    """Bytes that are left on the page."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, value: Any) -> bool:
        """Whether ``value`` still fits, as JSON; it then has its place."""
        size = len(json.dumps(value))
        if size > self.left:
            return False
        self.left -= size
        return True


def read_evaluation(folder: Path, room: Room, notes: list[str]) -> dict[str, Any] | None:
    """The evaluation in ``folder`` in plain types; None where ``eval.json`` is not what resnet-eval writes.

    What of it cannot be read, or has no ``room`` any more, is left out, with a line in ``notes``.
    """
    name = f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name}"
    try:
        plain = json.loads(read_regular(folder / "eval.json"))
        found = _figures(plain)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        notes.append(f"{name}/eval.json: {_said(error)}")
        return None
    found["name"] = folder.name
    for part, read in (("confusion", _confusion), ("per_class", _per_class), ("reliability", _reliability)):
        try:
            found[part] = read(plain) if part in plain else None
        except (ValueError, TypeError, KeyError) as error:
            found[part] = None
            notes.append(f"{name}/eval.json, {part}: {_said(error)}")
    for part, file, read_file in (("mistakes", "mistakes.csv", _mistakes), ("sheet", "mistakes.png", _sheet)):
        try:
            found[part] = read_file(read_regular(folder / file, limit=1 << 26))
        except FileNotFoundError:
            found[part] = None
        except (OSError, ValueError, TypeError, csv.Error, Image.DecompressionBombError) as error:
            found[part] = None
            notes.append(f"{name}/{file}: {_said(error)}")
    for part in ("mistakes", "per_class", "reliability", "confusion", "sheet"):
        if not room.take(found[part]):
            found[part] = None
            notes.append(f"{name}: no room for its {part.replace('_', ' ')} on a page with so many evaluations")
    found["mistakes_by"], found["mistakes"] = found["mistakes"] or ("image", [])
    return found


def _said(error: Exception) -> str:
    """Why, in one line; a short one, since it may quote the file."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"cannot be read ({' '.join(text.split())[:120] or type(error).__name__})"


def _figures(plain: Any) -> dict[str, Any]:
    if not isinstance(plain, dict) or not isinstance(plain.get("classes"), list):
        raise ValueError("expected the keys that resnet-eval writes")
    classes = plain["classes"]
    if len(classes) > MOST_CLASSES or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes: expected at most {MOST_CLASSES} names")
    if not 0 <= _number(plain["accuracy"]) <= 1:
        raise ValueError("accuracy: expected a number in [0, 1]")
    macro, interval = plain.get("macro"), plain.get("interval")
    low, high = (None, None) if interval is None else map(_number, interval)
    return {
        "classes": classes,
        **{key: _number(plain[key]) if plain.get(key) is not None else None for key in FIGURES},
        **{key: str(plain.get(key) or "")[:200] for key in TEXTS},
        **{key: int(_number(plain[key])) for key in ("step", "count", "correct") if plain.get(key) is not None},
        "interval": None if interval is None else [low, high],
        "macro_f1": _number(macro["f1"]) if isinstance(macro, dict) else None,
    }


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, got {str(value)[:40]!r}")
    return float(value)


def _confusion(plain: dict[str, Any]) -> list[list[int]]:
    """Rows as ``[column, count, column, count, ...]`` of what is not 0: most of a large matrix is."""
    size, rows = len(plain["classes"]), plain["confusion"]
    if len(rows) != size or any(len(row) != size for row in rows):
        raise ValueError(f"expected {size} rows of {size} counts")
    if any(type(cell) is not int or not 0 <= cell < 1 << 53 for row in rows for cell in row):
        raise ValueError("expected counts")
    return [[one for column, cell in enumerate(row) if cell for one in (column, cell)] for row in rows]


def _per_class(plain: dict[str, Any]) -> list[dict[str, Any]]:
    rows = plain["per_class"]
    if len(rows) > MOST_CLASSES:
        raise ValueError(f"expected at most {MOST_CLASSES} classes")
    rates = ("precision", "recall", "f1")
    return [
        {"name": str(row["name"]), "support": int(_number(row["support"]))}
        | {rate: None if row[rate] is None else round(_number(row[rate]), 6) for rate in rates}
        for row in rows
    ]


def _reliability(plain: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("low", "high", "count", "confidence", "accuracy")
    return [
        {key: None if row[key] is None else round(_number(row[key]), 6) for key in keys}
        for row in plain["reliability"][:MOST_CLASSES]
    ]


def _mistakes(content: bytes) -> tuple[str, list[list[Any]]]:
    """What names an image (index or path), and the worst mistakes: name, label, prediction, confidence."""
    lines = csv.reader(io.StringIO(content.decode("utf-8")))
    head = next(lines, [])
    if len(head) < 4 or head[1:4] != ["label", "prediction", "confidence"]:
        raise ValueError("expected the columns index or path, label, prediction, confidence")
    found: list[list[Any]] = []
    for (name, label, prediction, confidence, *_), _ in zip(lines, range(MOST_MISTAKES), strict=False):
        found.append([int(name) if name.isdecimal() else name, label, prediction, _number(float(confidence))])
    return head[0], found


def _sheet(content: bytes) -> str:
    """The picture of the worst mistakes as a data URI of at most SHEET_BYTES, smaller and coarser where need be."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"expected at most {MOST_PIXELS:,} pixels")
        image = opened.convert("RGB")
    for width, quality in SHEETS:
        image.thumbnail((width, 4 * width))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= SHEET_BYTES * 3 // 4:
            return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    raise ValueError(f"it does not fit into {SHEET_BYTES:,} bytes")
