"""The group ``dataset``: what to read, how many images of it, and how to augment them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resnet_train.config import checks
from resnet_train.errors import ConfigError

CIFAR_NUM_TRAIN = 50_000
FASHION_MNIST_NUM_TRAIN = 60_000
MAX_IMAGE_SIZE = 4096
MAX_ALPHA = 1000  # Beta(1000, 1000) is 1/2 within 0.03; from far larger ones Python draws for ever
MAX_IMAGES, MAX_CLASSES = 10**9, 10**6  # of synthetic images: their labels take 8 GB


@dataclass
class AugmentConfig:
    """Augmentation of the training images; off is 0 or false. Evaluation never augments."""

    crop_padding: int  # pixels on each side before a random crop of the original size
    crop_mode: str  # zeros, reflect
    flip: bool  # left to right, every second image on average
    cutout: int  # side of the square that is blanked, in pixels
    mixup: float  # alpha of Beta(alpha, alpha)
    cutmix: float  # alpha of Beta(alpha, alpha); with mixup too, each batch takes one of the two by chance


@dataclass
class DatasetConfig:
    """What all data sets share."""

    NAME: ClassVar[str]

    name: str
    train_size: int | None  # train on this many images, drawn by seed; null: all that val_size leaves
    val_size: int  # images of the training set held out by seed; the best checkpoint is chosen on them
    mean: list[float]  # per channel, in units of the full range
    std: list[float]
    augment: AugmentConfig


@dataclass
class CifarConfig(DatasetConfig):
    """Files of the official "python version"."""

    root: str  # holds, or will hold, cifar-10-batches-py/ or cifar-100-python/
    download: bool  # get what is not there
    mirrors: list[str]  # tried in order


@dataclass
class Cifar10Config(CifarConfig):
    """CIFAR-10: 50,000 and 10,000 images, 10 classes."""

    NAME: ClassVar[str] = "cifar10"


@dataclass
class Cifar100Config(CifarConfig):
    """CIFAR-100: 50,000 and 10,000 images, 100 classes."""

    NAME: ClassVar[str] = "cifar100"


@dataclass
class FashionMNISTConfig(DatasetConfig):
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 pixels, 10 classes."""

    NAME: ClassVar[str] = "fashion_mnist"

    root: str  # holds the four official IDX files


@dataclass
class ImageFolderConfig(DatasetConfig):
    """The user's own images: ``root/train/<class>/*`` and ``root/val/<class>/*``, or ``root/<class>/*`` alone."""

    NAME: ClassVar[str] = "imagefolder"

    root: str | None
    image_size: int  # pixels: the shorter side is scaled to it, then the centre is cut out
    cache: str | None  # folder of the decoded images; null: root/.resnet-train-cache
    val_fraction: float  # of root/<class>/*, by a hash of the name; the best checkpoint is chosen on them
    test_fraction: float  # of root/<class>/*, by a hash of the name


@dataclass
class SyntheticConfig(DatasetConfig):
    """Synthetic images, learnable, no file needed."""

    NAME: ClassVar[str] = "synthetic"

    num_classes: int
    image_size: int
    num_train: int
    num_test: int


def check_dataset(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` for values that no data set can serve."""
    checks.option_name("dataset", dataset)
    checks.number("dataset.val_size", dataset.val_size, at_least=0)
    if dataset.train_size is not None:
        checks.number("dataset.train_size", dataset.train_size, at_least=1)
    for key in ("mean", "std"):
        values = getattr(dataset, key)
        if len(values) != 3:
            raise ConfigError(f"dataset.{key}: expected three numbers, one a channel, got {len(values)}")
        for index, value in enumerate(values):
            checks.number(f"dataset.{key}[{index}]", value, above=0 if key == "std" else None)
    augment = dataset.augment
    checks.choice("dataset.augment.crop_mode", augment.crop_mode)
    checks.number("dataset.augment.cutout", augment.cutout, at_least=0, at_most=2 * MAX_IMAGE_SIZE)
    checks.number("dataset.augment.mixup", augment.mixup, at_least=0, at_most=MAX_ALPHA)
    checks.number("dataset.augment.cutmix", augment.cutmix, at_least=0, at_most=MAX_ALPHA)
    image_size = 28 if isinstance(dataset, FashionMNISTConfig) else 32
    if isinstance(dataset, ImageFolderConfig | SyntheticConfig):
        checks.number("dataset.image_size", dataset.image_size, at_least=4, at_most=MAX_IMAGE_SIZE)
        image_size = dataset.image_size
    if isinstance(dataset, CifarConfig | FashionMNISTConfig) and not dataset.root:
        variable = "RESNET_TRAIN_DATA" if isinstance(dataset, CifarConfig) else "RESNET_TRAIN_FASHION_MNIST"
        raise ConfigError(
            f"dataset.root: expected the folder that holds the files of {dataset.NAME}, or will hold them, got "
            f"nothing; add dataset.root=FOLDER, or unset {variable} where it is empty"
        )
    if isinstance(dataset, ImageFolderConfig):
        _check_imagefolder(dataset)
    if isinstance(dataset, SyntheticConfig):
        checks.number("dataset.num_classes", dataset.num_classes, at_least=2, at_most=MAX_CLASSES)
        checks.number("dataset.num_train", dataset.num_train, at_least=1, at_most=MAX_IMAGES)
        checks.number("dataset.num_test", dataset.num_test, at_least=1, at_most=MAX_IMAGES)
    checks.number("dataset.augment.crop_padding", augment.crop_padding, at_least=0, below=image_size)


def _check_imagefolder(dataset: ImageFolderConfig) -> None:
    if not dataset.root:
        raise ConfigError(
            "dataset.root: expected the folder that holds train/ and val/ with one folder a class, got nothing; "
            "add dataset.root=FOLDER"
        )
    checks.number("dataset.test_fraction", dataset.test_fraction, above=0, below=1)
    checks.number("dataset.val_fraction", dataset.val_fraction, at_least=0, below=1)
    if dataset.val_fraction + dataset.test_fraction >= 1:
        raise ConfigError(
            f"dataset.val_fraction and dataset.test_fraction: expected a sum below 1, since the other images are "
            f"trained on, got {dataset.val_fraction + dataset.test_fraction:g}; try dataset.val_fraction=0.1"
        )


def known_num_train(dataset: DatasetConfig) -> int | None:
    """Number of training images, or None where only a look at the files can tell."""
    match dataset:
        case CifarConfig():
            available = CIFAR_NUM_TRAIN
        case FashionMNISTConfig():
            available = FASHION_MNIST_NUM_TRAIN
        case SyntheticConfig():
            available = dataset.num_train
        case _:
            return None
    return num_train_images(dataset, available)


def num_train_images(dataset: DatasetConfig, available: int) -> int:
    """Images to train on when ``available`` lie in the training set; raises `ConfigError` if they do not suffice."""
    left = available - dataset.val_size
    if left < 1:
        raise ConfigError(
            f"dataset.val_size: expected fewer than the {available} training images, got {dataset.val_size}"
        )
    if dataset.train_size is not None and dataset.train_size > left:
        raise ConfigError(
            f"dataset.train_size: expected at most {left} ({available} images less val_size={dataset.val_size}), "
            f"got {dataset.train_size}; try dataset.train_size={left}"
        )
    return dataset.train_size if dataset.train_size is not None else left
