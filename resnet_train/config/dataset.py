"""The group ``dataset``: what to read, how many images of it, and how to augment them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resnet_train.config.medmnist import SUBSETS
from resnet_train.errors import ConfigError


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
    NUM_TRAIN: ClassVar[int | None] = None  # training images, where that is known without a look at the files
    NUM_CLASSES: ClassVar[int | None] = None
    IMAGE_SIZE: ClassVar[int | None] = None  # None: the key image_size says it
    HAS_VAL: ClassVar[bool] = False  # an official validation split, so that val_size has nothing to hold out

    name: str
    channels: int  # 1: grey, what has colours is converted; 3: colours, what is grey gets three equal channels
    train_size: int | None  # train on this many images only, drawn by seed; null: all that val_size leaves
    val_size: int  # images of the training set held out by seed; the best checkpoint is chosen on them
    mean: list[float]  # per channel, in units of the full range
    std: list[float]
    augment: AugmentConfig


@dataclass
class PublishedConfig(DatasetConfig):
    """Files that were published once and for all, verified by their MD5."""

    root: str  # holds, or will hold, the files
    download: bool  # get what is not there
    mirrors: list[str]  # tried in order; to one that ends in / the name of the file is added


@dataclass
class CifarConfig(PublishedConfig):
    """Files of the official "python version"."""

    NUM_TRAIN: ClassVar[int | None] = 50_000
    IMAGE_SIZE: ClassVar[int | None] = 32


@dataclass
class Cifar10Config(CifarConfig):
    """CIFAR-10: 50,000 and 10,000 images, 10 classes."""

    NAME: ClassVar[str] = "cifar10"
    NUM_CLASSES: ClassVar[int | None] = 10


@dataclass
class Cifar100Config(CifarConfig):
    """CIFAR-100: 50,000 and 10,000 images, 100 classes."""

    NAME: ClassVar[str] = "cifar100"
    NUM_CLASSES: ClassVar[int | None] = 100


@dataclass
class IdxConfig(PublishedConfig):
    """Four IDX files: 60,000 and 10,000 grey images of 28x28 pixels, 10 classes."""

    NUM_TRAIN: ClassVar[int | None] = 60_000
    NUM_CLASSES: ClassVar[int | None] = 10
    IMAGE_SIZE: ClassVar[int | None] = 28


@dataclass
class MNISTConfig(IdxConfig):
    """Handwritten digits."""

    NAME: ClassVar[str] = "mnist"


@dataclass
class FashionMNISTConfig(IdxConfig):
    """Pieces of clothing."""

    NAME: ClassVar[str] = "fashion_mnist"


@dataclass
class KMNISTConfig(IdxConfig):
    """Kuzushiji-MNIST: ten characters of old Japanese cursive."""

    NAME: ClassVar[str] = "kmnist"


@dataclass
class MedMNISTConfig(PublishedConfig):
    """MedMNIST v2: eleven sets of medical images of 28x28 pixels, most of them grey, each with three splits."""

    NAME: ClassVar[str] = "medmnist"
    IMAGE_SIZE: ClassVar[int | None] = 28
    HAS_VAL: ClassVar[bool] = True

    subset: str  # one of config/medmnist.py


@dataclass
class SVHNConfig(PublishedConfig):
    """Street View House Numbers, cropped digits: 73,257 and 26,032 images of 32x32 pixels, 10 classes."""

    NAME: ClassVar[str] = "svhn"
    NUM_TRAIN: ClassVar[int | None] = 73_257
    NUM_CLASSES: ClassVar[int | None] = 10
    IMAGE_SIZE: ClassVar[int | None] = 32


@dataclass
class STL10Config(PublishedConfig):
    """STL-10: 5,000 and 8,000 images of 96x96 pixels, 10 classes; its images without labels are not read."""

    NAME: ClassVar[str] = "stl10"
    NUM_TRAIN: ClassVar[int | None] = 5_000
    NUM_CLASSES: ClassVar[int | None] = 10
    IMAGE_SIZE: ClassVar[int | None] = 96


@dataclass
class ImageArchiveConfig(PublishedConfig):
    """An archive of image files, which are decoded once into a cache."""

    image_size: int  # pixels: the shorter side is scaled to it, then the centre is cut out
    cache: str | None  # folder of the decoded images; null: .resnet-train-cache beside the unpacked images


@dataclass
class TinyImageNetConfig(ImageArchiveConfig):
    """Tiny ImageNet: 100,000 and 10,000 images of 64x64 pixels, 200 classes; the test images are its val/."""

    NAME: ClassVar[str] = "tiny_imagenet"
    NUM_TRAIN: ClassVar[int | None] = 100_000
    NUM_CLASSES: ClassVar[int | None] = 200


@dataclass
class ImagenetteConfig(ImageArchiveConfig):
    """Imagenette, the version of 160 pixels: 9,469 and 3,925 photographs, 10 classes; the test images are its val/."""

    NAME: ClassVar[str] = "imagenette"
    NUM_TRAIN: ClassVar[int | None] = 9_469
    NUM_CLASSES: ClassVar[int | None] = 10


@dataclass
class EuroSATConfig(ImageArchiveConfig):
    """EuroSAT: 27,000 satellite images of 64x64 pixels, 10 classes, split here by a hash of their names."""

    NAME: ClassVar[str] = "eurosat"
    NUM_TRAIN: ClassVar[int | None] = 21_700  # tests/data/test_hash_split.py counts them
    NUM_CLASSES: ClassVar[int | None] = 10


@dataclass
class ImageFolderConfig(DatasetConfig):
    """The user's own images: ``root/train/<class>/*`` and ``root/val/...``, ``root/<class>/*`` alone, or a table."""

    NAME: ClassVar[str] = "imagefolder"

    root: str | None
    image_size: int  # pixels: the shorter side is scaled to it, then the centre is cut out
    cache: str | None  # folder of the decoded images; null: root/.resnet-train-cache
    labels: str | None  # CSV file with path, label and maybe split of each image; null: folders say them
    val_fraction: float  # of images without splits, by a hash of the name; the best checkpoint is chosen on them
    test_fraction: float  # of images without splits, by a hash of the name


@dataclass
class SyntheticConfig(DatasetConfig):
    """Synthetic images, learnable, no file needed."""

    NAME: ClassVar[str] = "synthetic"

    num_classes: int
    image_size: int
    num_train: int
    num_test: int


def image_size(dataset: DatasetConfig) -> int:
    """Height and width of the images in pixels."""
    if isinstance(dataset, ImageArchiveConfig | ImageFolderConfig | SyntheticConfig):
        return dataset.image_size
    assert dataset.IMAGE_SIZE is not None, f"no image size for {type(dataset).__name__}"
    return dataset.IMAGE_SIZE


def known_num_train(dataset: DatasetConfig) -> int | None:
    """Number of training images, or None where only a look at the files can tell."""
    match dataset:
        case SyntheticConfig():
            available: int | None = dataset.num_train
        case MedMNISTConfig():
            available = SUBSETS[dataset.subset].num_train
        case _:
            available = dataset.NUM_TRAIN
    return None if available is None else num_train_images(dataset, available)


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
