from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnet_train.runs.pictures import as_pixels, confusion_matrix, png, reliability_diagram, sheet

pytest.importorskip("matplotlib")


def test_a_sheet_shows_every_image_enlarged_by_a_whole_factor() -> None:
    images = np.zeros((10, 32, 32, 3), np.uint8)
    for number in range(10):
        images[number, 5, 7] = (200, 20 * number, 7)
    page = sheet(images, ["one line", *["two\nlines"] * 9])
    for number in range(10):
        found = np.argwhere((page == (200, 20 * number, 7)).all(2))
        assert len(found) == 9, number  # 96 pixels a side: a factor of three
        assert (np.ptp(found, axis=0) == 2).all()
    assert np.asarray(Image.open(io.BytesIO(png(page)))).shape == page.shape


@pytest.mark.parametrize("size", [4, 28, 97, 224])
def test_captions_stay_below_their_image(size: int) -> None:
    page = sheet(np.full((2, size, size, 3), 255, np.uint8), ["M" * 300, ""])
    half = page.shape[1] // 2
    assert (page[:, :half] < 100).any() and (page[:, half + 8 :] == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 10, 120])
def test_a_confusion_matrix_darkens_where_the_counts_are(number: int) -> None:
    names = [f"$class_{one} 猫 " + "x" * 40 for one in range(number)]  # no TeX, not too long, whatever the fonts
    empty, full = ((np.eye(number, dtype=int) * count).tolist() for count in (0, 9))
    blank, drawn = (as_pixels(confusion_matrix(counts, names)) for counts in (empty, full))
    assert drawn.shape == blank.shape and drawn.mean() < blank.mean()


def test_a_reliability_diagram_survives_empty_bins() -> None:
    bins = [
        {"low": number / 4, "high": (number + 1) / 4, "count": count, "confidence": 0.9, "accuracy": 0.5}
        for number, count in enumerate((0, 0, 0, 3))
    ]
    drawn, blank = (as_pixels(reliability_diagram(one, calibration_error=0.4)) for one in (bins, bins[:3]))
    assert drawn.shape == blank.shape and (drawn != blank).any()


def test_without_matplotlib_the_extra_is_named() -> None:
    probe = (
        "import sys; sys.modules['matplotlib.figure'] = None\n"
        "from resnet_train.runs.pictures import confusion_matrix\nconfusion_matrix([[1]], ['a'])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, encoding="utf-8")
    assert 'ConfigError: plots need matplotlib, got none; pip install "resnet-train[plots]"' in done.stderr
