"""The loops of tutorials see the images that resnet-train sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.commands.bench.baselines import loader_of
from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset

GREY = ("dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.25]")


@pytest.mark.parametrize(("overrides", "channels"), [((), 3), (GREY, 1)], ids=["colours", "grey"])
def test_images_of_any_channels(overrides: tuple[str, ...], channels: int, tiny: Callable[..., Config]) -> None:
    config = tiny(*overrides)
    data = load_dataset(config.dataset, seed=0)
    image, label = loader_of(config, data, pin_memory=False, persistent_workers=False).dataset[3]
    assert image.shape == (channels, 16, 16)
    assert label == data.train.labels[3]
