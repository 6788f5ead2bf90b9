"""The splits, and the data sets as they arrive in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from resnet_train.config.dataset import Cifar10Config, ImageFolderConfig, SyntheticConfig
from resnet_train.data.dataset import Split, load_dataset
from resnet_train.errors import ConfigError


def keys(split: Split | None) -> list[bytes]:
    assert split is not None
    return [image.numpy().tobytes() + bytes([label]) for image, label in zip(split.images, split.labels, strict=True)]


def test_without_a_validation_split_all_images_train(synthetic: SyntheticConfig) -> None:
    data = load_dataset(synthetic, seed=0)
    assert (len(data.train), data.val, len(data.test), data.image_size) == (60, None, 20, 8)
    assert len(set(keys(data.train))) == 60, "the tests below need images that differ"


def test_the_validation_split_is_held_out_of_the_training_images_by_seed(synthetic: SyntheticConfig) -> None:
    whole = load_dataset(synthetic, seed=0)
    held_out = []
    for seed in (0, 1):
        data = load_dataset(replace(synthetic, val_size=15), seed=seed)
        assert (len(data.train), len(keys(data.val))) == (45, 15)
        assert sorted(keys(data.train) + keys(data.val)) == sorted(keys(whole.train))
        assert keys(data.test) == keys(whole.test)
        assert keys(data.val) == keys(load_dataset(replace(synthetic, val_size=15), seed=seed).val)
        held_out.append(set(keys(data.val)))
    assert held_out[0] != held_out[1]


def test_train_size_takes_some_of_what_is_left_by_seed(synthetic: SyntheticConfig) -> None:
    data, other = (load_dataset(replace(synthetic, val_size=15, train_size=20), seed=seed) for seed in (0, 1))
    assert (len(data.train), len(keys(data.val))) == (20, 15)
    assert not set(keys(data.train)) & set(keys(data.val))
    assert set(keys(data.train)) < set(keys(load_dataset(synthetic, seed=0).train))
    assert set(keys(data.train)) != set(keys(other.train))
    assert keys(data.val) == keys(load_dataset(replace(synthetic, val_size=15), seed=0).val), (
        "train_size moves no val image"
    )
    alone = load_dataset(replace(synthetic, train_size=20), seed=0)
    assert (len(alone.train), alone.val) == (20, None)
    everything = load_dataset(replace(synthetic, val_size=15, train_size=45), seed=0)
    assert len(everything.train) == 45


def test_more_images_than_there_are(synthetic: SyntheticConfig) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.val_size: expected fewer than the 60 training images, got 60$"):
        load_dataset(replace(synthetic, val_size=60), seed=0)


# ------------------------------------------------------------------------------------------------------------ data sets


def test_synthetic_images_are_the_same_for_every_seed_and_differ_between_splits(synthetic: SyntheticConfig) -> None:
    first, second = (load_dataset(replace(synthetic, num_test=60), seed=seed) for seed in (0, 1))
    assert keys(first.train) == keys(second.train)
    assert keys(first.test) == keys(second.test)
    assert not set(keys(first.train)) & set(keys(first.test))


@pytest.mark.parametrize(("num_classes", "image_size"), [(10, 32), (3, 12)])
def test_synthetic_images_are_learnable_bytes(num_classes: int, image_size: int, synthetic: SyntheticConfig) -> None:
    """The class with the nearest mean image is the right one far more often than by chance."""
    config = replace(synthetic, num_classes=num_classes, image_size=image_size, num_train=600, num_test=200)
    data = load_dataset(config, seed=0)
    assert data.train.images.shape == (600, image_size, image_size, 3)
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert set(data.train.labels.tolist()) == set(range(num_classes))
    assert len(data.classes) == num_classes
    train, test = (split.images.flatten(1).float() for split in (data.train, data.test))
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(num_classes)])
    found = torch.cdist(test, means).argmin(1)
    assert (found == data.test.labels).float().mean().item() > 0.8


def test_a_folder_of_images(tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    colours = {
        "train/dog/1": (200, 0, 0),
        "train/cat/1": (0, 100, 0),
        "train/dog/2": (0, 0, 50),
        "val/dog/x": (9, 8, 7),
    }
    for name, colour in colours.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), colour).save(path)
    data = load_dataset(imagefolder(tmp_path), seed=0)
    assert data.classes == ("cat", "dog")
    assert (data.train.labels.tolist(), data.test.labels.tolist(), data.val) == ([0, 1, 1], [1], None)
    assert (data.train.images.shape, data.train.images.dtype) == ((3, 8, 8, 3), torch.uint8)
    for image, name in zip(data.train.images, ["train/cat/1", "train/dog/1", "train/dog/2"], strict=True):
        assert torch.equal(image, torch.tensor(colours[name], dtype=torch.uint8).expand(8, 8, 3))


def test_a_folder_of_images_in_grey(tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    """The cache holds colours, whatever is asked for: it is made once."""
    for name in ("train/cat/1", "train/dog/1", "val/dog/1"):
        (tmp_path / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 100, 0)).save(tmp_path / f"{name}.png")
    config = imagefolder(tmp_path)
    grey = replace(config, channels=1, mean=[0.5], std=[0.5])
    assert load_dataset(config, seed=0).train.images.shape == (2, 8, 8, 3)
    images = load_dataset(grey, seed=0).train.images
    assert images.shape == (2, 8, 8, 1)
    assert images.unique().tolist() == [round(0.299 * 200 + 0.587 * 100)]
    assert len(list((tmp_path / ".resnet-train-cache").glob("train-*.npy"))) == 1


@pytest.mark.slow
def test_cifar10_and_the_statistics_that_normalise_it(
    cifar10_root: Path, cifar10: Callable[..., Cifar10Config]
) -> None:
    shipped = OmegaConf.load(Path(__file__).parents[2] / "conf/dataset/cifar10.yaml")
    config = replace(cifar10(cifar10_root), val_size=5000, mean=list(shipped.mean), std=list(shipped.std))
    data = load_dataset(config, seed=0)
    assert (len(data.train), len(data.test), data.image_size) == (45_000, 10_000, 32)
    assert data.classes[:2] == ("airplane", "automobile")
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.val is not None
    whole = torch.cat([data.train.images, data.val.images])
    for channel in range(3):
        fraction = torch.bincount(whole[..., channel].flatten(), minlength=256).double() / whole[..., channel].numel()
        value = torch.arange(256).double() / 255
        mean = (fraction * value).sum()
        assert round(mean.item(), 4) == config.mean[channel]
        assert round((fraction * (value - mean) ** 2).sum().sqrt().item(), 4) == config.std[channel]
