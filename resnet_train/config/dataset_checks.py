"""What the group ``dataset`` refuses."""

from __future__ import annotations

import difflib

from resnet_train.config import checks
from resnet_train.config.dataset import (
    DatasetConfig,
    FashionMNISTConfig,
    ImageFolderConfig,
    MedMNISTConfig,
    PublishedConfig,
    SyntheticConfig,
    image_size,
)
from resnet_train.config.medmnist import SUBSETS
from resnet_train.errors import ConfigError

MAX_IMAGE_SIZE = 4096
MAX_ALPHA = 1000  # Beta(1000, 1000) is 1/2 within 0.03; from far larger ones Python draws for ever
MAX_IMAGES, MAX_CLASSES = 10**9, 10**6  # of synthetic images: their labels take 8 GB


def check_dataset(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` for values that no data set can serve."""
    checks.option_name("dataset", dataset)
    _check_own_keys(dataset)
    checks.number("dataset.val_size", dataset.val_size, at_least=0)
    if dataset.HAS_VAL and dataset.val_size:
        raise ConfigError(
            f"dataset.val_size: expected 0, since {dataset.NAME} has validation images of its own, which are used, "
            f"got {dataset.val_size}; leave it out"
        )
    if dataset.train_size is not None:
        checks.number("dataset.train_size", dataset.train_size, at_least=1)
    _check_channels(dataset)
    augment = dataset.augment
    checks.choice("dataset.augment.crop_mode", augment.crop_mode)
    checks.number("dataset.augment.cutout", augment.cutout, at_least=0, at_most=2 * MAX_IMAGE_SIZE)
    checks.number("dataset.augment.mixup", augment.mixup, at_least=0, at_most=MAX_ALPHA)
    checks.number("dataset.augment.cutmix", augment.cutmix, at_least=0, at_most=MAX_ALPHA)
    checks.number("dataset.augment.crop_padding", augment.crop_padding, at_least=0, below=image_size(dataset))


def _check_channels(dataset: DatasetConfig) -> None:
    if dataset.channels not in (1, 3):
        raise ConfigError(f"dataset.channels: expected 1 (grey) or 3 (colours), got {dataset.channels}")
    expected = "one number" if dataset.channels == 1 else "three numbers, one a channel"
    for key in ("mean", "std"):
        values = getattr(dataset, key)
        if len(values) != dataset.channels:
            raise ConfigError(
                f"dataset.{key}: expected {expected} (dataset.channels={dataset.channels}), got {len(values)}; give "
                f"that of the images with as many channels"
            )
        for index, value in enumerate(values):
            checks.number(f"dataset.{key}[{index}]", value, above=0 if key == "std" else None)


def _check_own_keys(dataset: DatasetConfig) -> None:
    """Those that some data sets have alone."""
    match dataset:
        case PublishedConfig() if not dataset.root:
            variable = "RESNET_TRAIN_DATA"
            if isinstance(dataset, FashionMNISTConfig):
                variable += " or RESNET_TRAIN_FASHION_MNIST"
            raise ConfigError(
                f"dataset.root: expected the folder that holds the files of {dataset.NAME}, or will hold them, got "
                f"nothing; add dataset.root=FOLDER, or unset {variable} where it is empty"
            )
        case ImageFolderConfig():
            _check_imagefolder(dataset)
        case MedMNISTConfig() if dataset.subset not in SUBSETS:
            close = difflib.get_close_matches(dataset.subset.lower(), SUBSETS, 1)
            raise ConfigError(
                f"dataset.subset: expected one of {', '.join(SUBSETS)}, got {dataset.subset!r}"
                + ("; its images have any number of labels each" if dataset.subset == "chestmnist" else "")
                + (f"; did you mean dataset.subset={close[0]}?" if close and dataset.subset != "chestmnist" else "")
            )
        case SyntheticConfig():
            checks.number("dataset.num_classes", dataset.num_classes, at_least=2, at_most=MAX_CLASSES)
            checks.number("dataset.num_train", dataset.num_train, at_least=1, at_most=MAX_IMAGES)
            checks.number("dataset.num_test", dataset.num_test, at_least=1, at_most=MAX_IMAGES)
    if dataset.IMAGE_SIZE is None:
        checks.number("dataset.image_size", image_size(dataset), at_least=4, at_most=MAX_IMAGE_SIZE)


def _check_imagefolder(dataset: ImageFolderConfig) -> None:
    if not dataset.root:
        raise ConfigError(
            "dataset.root: expected the folder that holds train/ and val/ with one folder a class, got nothing; "
            "add dataset.root=FOLDER"
        )
    if dataset.labels == "":
        raise ConfigError("dataset.labels: expected a CSV file or null, got nothing; add dataset.labels=FILE.csv")
    checks.number("dataset.test_fraction", dataset.test_fraction, above=0, below=1)
    checks.number("dataset.val_fraction", dataset.val_fraction, at_least=0, below=1)
    if dataset.val_fraction + dataset.test_fraction >= 1:
        raise ConfigError(
            f"dataset.val_fraction and dataset.test_fraction: expected a sum below 1, since the other images are "
            f"trained on, got {dataset.val_fraction + dataset.test_fraction:g}; try dataset.val_fraction=0.1"
        )
