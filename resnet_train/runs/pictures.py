"""Pictures of an evaluation: sheets of images with captions (Pillow), and plots (matplotlib, the extra ``plots``)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_train.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE, GAP, CAPTION_SIZE = 96, 8, 12  # pixels
MOST_NUMBERS = 20  # classes whose numbers are written into a confusion matrix
# Fonts with Chinese, Japanese and Korean names of classes, where the system has one: Linux, Windows, macOS.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "SimHei", "PingFang SC")


def sheet(images: NDArray[np.uint8], captions: Sequence[str], *, columns: int = 8) -> NDArray[np.uint8]:
    """Images ``(N, H, W, C)`` in rows, each above its caption of up to two lines: ``(height, width, 3)``.

    Small images are enlarged by a whole factor, so that their pixels stay squares; large ones are shrunk.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(CAPTION_SIZE)
    size, grey = images.shape[1], images.shape[3] == 1
    side = size * max(1, TILE // size) if size <= 2 * TILE else TILE
    line = CAPTION_SIZE + 3
    cell_width, cell_height = side + GAP, side + 2 * line + GAP
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + number % columns * cell_width, GAP + number // columns * cell_height
        how = Image.Resampling.NEAREST if size <= 2 * TILE else Image.Resampling.BICUBIC
        page.paste(Image.fromarray(pixels.squeeze(-1) if grey else pixels).resize((side, side), how), (left, top))
        for row, text in enumerate(caption.split("\n")[:2]):
            while text and draw.textlength(text, font=font) > side + GAP / 2:
                text = text.rstrip("…")[:-1] + "…" if len(text) > 1 else ""
            draw.text((left, top + side + 1 + row * line), text, fill="black", font=font)
    return np.asarray(page)


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Labels in rows, predictions in columns, coloured by the share of a row; numbers where they can be read.

    Raises `ConfigError` that names the extra where matplotlib is missing.
    """
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    number = len(classes)
    side = min(3.5 + 0.5 * number, 14.0)
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    step = math.ceil(number / 60)  # names that can be read
    ticks = range(0, number, step)
    names = [classes[tick] if len(classes[tick]) <= 20 else classes[tick][:19] + "…" for tick in ticks]
    small = 9 if number <= MOST_NUMBERS else 5
    style: dict[str, Any] = {"fontsize": small, "parse_math": False, "fontfamily": _fonts()}
    axes.set_xticks(ticks, names, rotation=90, **style)
    axes.set_yticks(ticks, names, **style)
    if number <= MOST_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                dark = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=dark, fontsize=8)
    return figure


def reliability_diagram(bins: Sequence[dict[str, Any]], *, calibration_error: float) -> Figure:
    """Accuracy over confidence, and how many images lie in each bin (keys as in `training.scores.Bin`).

    Raises `ConfigError` that names the extra where matplotlib is missing.
    """
    figure, axes = _figure(5.0, 5.0)
    filled = [one for one in bins if one["count"]]
    most = max((one["count"] for one in filled), default=1)
    width = bins[0]["high"] - bins[0]["low"]
    middle = [one["low"] + width / 2 for one in filled]
    shares = [one["count"] / most for one in filled]
    axes.bar(middle, shares, width=width, color="0.88", edgecolor="white", label="images (largest bin = 1)")
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="perfectly calibrated")
    confidence, accuracy = ([one[key] for one in filled] for key in ("confidence", "accuracy"))
    axes.plot(confidence, accuracy, color="#0b5ea8", marker="o", label="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.set_title(f"expected calibration error {100 * calibration_error:.2f} %", fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """An empty figure of so many inches, and its axes: without pyplot, whose state is the whole process's."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('plots need matplotlib, got none; pip install "resnet-train[plots]"') from error
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    return figure, figure.add_subplot()


def _fonts() -> list[str]:
    """matplotlib's own font, then those for what it lacks."""
    from matplotlib import font_manager

    found = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in found)]


def as_pixels(figure: Figure) -> NDArray[np.uint8]:
    """A plot as an image ``(height, width, 3)``; characters that no font has are drawn as boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An image ``(height, width, 3)`` as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()
