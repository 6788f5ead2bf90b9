"""Is an exported network the original? Both see the same real images, in batches of several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from resnet_train.config.dataset import PublishedConfig, image_size
from resnet_train.data.dataset import load_dataset
from resnet_train.data.decode import decode, image_endings
from resnet_train.errors import ConfigError, RunError
from resnet_train.inference.classifier import Network, stacked
from resnet_train.inference.trained import Trained

# One image, whose axis exporters like to freeze; as many as the example that was traced; a prime beyond every vector.
BATCHES = (1, 2, 17)
TOLERANCE = 1e-4  # of a probability: another order of summing moves it by 1e-7, a wrong operation by far more


@dataclass(frozen=True)
class Check:
    """What a comparison found."""

    images: int
    largest_difference: float  # of a probability


def compare(network: Network, original: Network, batches: Iterable[Tensor]) -> Check:
    """Run both on ``batches`` of uint8 ``(N, S, S, C)``.

    Raises `RunError` where a class differs, or a probability by more than `TOLERANCE`.
    """
    images, largest = 0, 0.0
    for batch in batches:
        expected, found = (one(batch).double().softmax(1) for one in (original, network))
        if not expected.isfinite().all():
            raise RunError("expected probabilities from the trained network, got NaN: its training diverged")
        changed = int((found.argmax(1) != expected.argmax(1)).sum())
        difference = float((found - expected).abs().max())
        if changed or not difference <= TOLERANCE:  # NaN is not
            raise RunError(
                f"the exported network is not the original: in a batch of {len(batch)} it calls {changed} images "
                f"another class, and probabilities differ by up to {difference:.1e}, expected at most {TOLERANCE:.0e}; "
                f"nothing was written"
            )
        images, largest = images + len(batch), max(largest, difference)
    return Check(images, largest)


def in_batches(images: Tensor) -> Sequence[Tensor]:
    """As many of ``images`` ``(N, S, S, C)`` as `BATCHES` want, from all over them; repeated where there are fewer."""
    wanted = sum(BATCHES)
    return torch.split(images[torch.arange(wanted) * len(images) // wanted], list(BATCHES))


def own_images(trained: Trained, *, may_download: bool = False) -> Tensor:
    """The test images of the run's data set, uint8 ``(N, S, S, C)``.

    Raises `ConfigError` where they are not at hand; whether the run itself might download them is no matter here.
    """
    dataset = trained.config.dataset
    if isinstance(dataset, PublishedConfig):
        dataset = replace(dataset, download=may_download)
    try:
        images = load_dataset(dataset, seed=trained.config.seed).test.images
    except ConfigError as error:
        raise ConfigError(
            f"cannot check the export without images: name some with --images FOLDER, or the data set's place; {error}"
        ) from error
    return images


def given_images(paths: Iterable[Path], trained: Trained) -> Tensor:
    """Images in files and in folders at any depth, prepared for the network: uint8 ``(N, S, S, C)``.

    Of many, as many as `in_batches` takes. Raises `ConfigError` for what cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        inside = [one for one in path.rglob("*") if one.suffix.lower() in image_endings()] if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"--images: expected a folder with images, got {path}, which holds none")
        found += sorted(inside)
    wanted = min(len(found), sum(BATCHES))
    size, channels = image_size(trained.config.dataset), trained.config.dataset.channels
    return stacked([decode(found[number * len(found) // wanted], size, channels=channels) for number in range(wanted)])
