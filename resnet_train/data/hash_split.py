"""Splits of images that come without one: by a hash of each name alone, so that adding an image moves no other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

HUNDREDTHS = np.arange(101) / 100


def split_of(name: str, *, val_fraction: float = 0.0, test_fraction: float) -> Literal["train", "val", "test"]:
    """The split of an image, by its ``name``: the same on every machine, for every seed and whatever lies beside it.

    Test images lie at the beginning of the places in [0, 1), then those of validation. So another ``val_fraction``
    leaves the test images as they are. The fractions, which sum to less than 1, are met to within chance: a rule by
    which no image ever moves another cannot look at the others, so it cannot promise each class an image in each split.
    """
    place = place_of(name)
    if place < test_fraction:
        return "test"
    return "val" if place < test_fraction + val_fraction else "train"


def place_of(name: str) -> float:
    """The first 64 bits of the name's SHA-256, in UTF-8, as a number in [0, 1)."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def better_fractions(
    places: Sequence[Sequence[float]], *, val_fraction: float, test_fraction: float
) -> tuple[float, float] | None:
    """``val_fraction`` and ``test_fraction`` by which every class has an image in every split; None where none do so.

    ``places``: those of the images of each class. In hundredths, and of those that serve the nearest to what was asked
    for; no validation split where none was asked for.
    """
    below = np.array([np.searchsorted(np.sort(np.array(one)), HUNDREDTHS) for one in places])  # (classes, 101)
    found: list[tuple[float, float, float]] = []
    for test in range(1, 100):
        ends = np.arange(test + 1, 100) if val_fraction else np.array([test])
        serve = (below[:, [test]] > 0).all(axis=0) & (below[:, ends] < below[:, [100]]).all(axis=0)
        if val_fraction:
            serve &= (below[:, ends] > below[:, [test]]).all(axis=0)
        for end in ends[serve].tolist():
            val, far = (end - test) / 100, abs(test / 100 - test_fraction)
            found.append((far + (abs(val - val_fraction) if val_fraction else 0), val, test / 100))
    return min(found)[1:] if found else None
