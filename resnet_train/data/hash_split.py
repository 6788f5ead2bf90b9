"""Splits of images that come without one: by a hash of each name alone, so that adding an image moves no other."""

from __future__ import annotations

import hashlib
from typing import Literal


def split_of(name: str, *, val_fraction: float = 0.0, test_fraction: float) -> Literal["train", "val", "test"]:
    """The split of an image, by its ``name``: the same on every machine, for every seed and whatever lies beside it.

    The first 64 bits of the name's SHA-256, in UTF-8, are a place in [0, 1): test images lie at its beginning, then
    those of validation. So another ``val_fraction`` leaves the test images as they are. The fractions, which sum to
    less than 1, are met to within chance.
    """
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place < test_fraction:
        return "test"
    return "val" if place < test_fraction + val_fraction else "train"
