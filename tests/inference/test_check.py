"""The comparison of an exported network with its original, and the images for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError, RunError
from resnet_train.inference.check import compare, given_images, in_batches, own_images
from resnet_train.inference.classifier import TorchNetwork
from resnet_train.inference.export import PLAN, network_of
from resnet_train.inference.trained import Trained


@pytest.fixture
def network(small: Trained) -> Callable[[float], TorchNetwork]:
    """The network, with so much added to the first bias of its last layer."""

    def changed(shift: float) -> TorchNetwork:
        model = network_of(small)
        model.state_dict()["fc.bias"][0] += shift
        return TorchNetwork(model, small.spec(), PLAN)

    return changed


@pytest.mark.slow
def test_equal_networks(network: Callable[[float], TorchNetwork], small: Trained) -> None:
    check = compare(network(0), network(0), in_batches(own_images(small)))
    assert (check.images, check.largest_difference) == (20, 0)
    check = compare(network(1e-5), network(0), own_images(small).split(70))
    assert check.images == 70
    assert 0 < check.largest_difference < 1e-5


def test_different_networks(network: Callable[[float], TorchNetwork], small: Trained) -> None:
    for shift, message in (
        (0.01, r"in a batch of 1 it calls 0 images another class, and probabilities differ by up to \d\.\de-0[34], "),
        (100, r"in a batch of 1 it calls 1 images another class, and probabilities differ by up to \d\.\de-01, "),
        (float("nan"), "probabilities differ by up to nan, expected at most 1e-04; nothing was written$"),
    ):
        with pytest.raises(RunError, match=message):
            compare(network(shift), network(0), in_batches(unsure(small, network(0))))


def unsure(small: Trained, network: TorchNetwork) -> Tensor:
    """The test image of which the network is least sure, and which is not of the first class."""
    images = own_images(small)
    probabilities = network(images).softmax(1)
    order = probabilities.amax(1) + probabilities.argmax(1).eq(0)
    return images[order.argmin()][None]


def test_batches_are_taken_from_all_over() -> None:
    for count in (1, 7, 20, 1000):
        images = torch.arange(count).reshape(count, 1, 1, 1)
        batches = in_batches(images)
        assert [len(batch) for batch in batches] == [1, 2, 17]
        found = torch.cat(list(batches)).flatten()
        assert len(found.unique()) == min(count, 20)
        assert found.max() >= 0.9 * (count - 1)


def test_given_images(small: Trained, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for number in range(45):
        pixels = np.full((9 + number, 30), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "deep/er" / f"{number:02}.png")
    (tmp_path / "deep/notes.txt").write_text("no image")
    images = given_images([tmp_path], small)
    assert images.shape == (20, 16, 16, 3)
    assert images[:, 0, 0, 0].tolist() == [number * 45 // 20 for number in range(20)]
    one = given_images([tmp_path / "deep/er/07.png"], small)
    assert one.unique().tolist() == [7]
    with pytest.raises(ConfigError, match=r"notes\.txt: expected an image, got something else"):
        given_images([tmp_path / "deep/notes.txt"], small)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^--images: expected a folder with images, got .*empty, which holds none$"):
        given_images([tmp_path / "empty"], small)


def test_without_a_data_set(small: Trained, compose: Callable[..., Config], tmp_path: Path) -> None:
    """Nothing is downloaded for a check, though the run was allowed to."""
    config = compose(f"dataset.root={tmp_path}", "dataset.download=true")
    with pytest.raises(ConfigError) as error:
        own_images(replace(small, config=config))
    assert str(error.value).startswith("cannot check the export without images: name some with --images FOLDER, or ")
    assert "dataset.root: expected cifar-10-batches-py/" in str(error.value)
    assert list(tmp_path.iterdir()) == []
