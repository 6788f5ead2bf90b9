"""Tiny ImageNet, Imagenette and EuroSAT: archives of image files, unpacked, listed here, decoded by `image_cache`.

The archive is verified by its MD5. A folder that was unpacked already is taken where it holds as many images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_train.config.dataset import (
    EuroSATConfig,
    ImageArchiveConfig,
    ImagenetteConfig,
    TinyImageNetConfig,
    num_train_images,
)
from resnet_train.config.size import data_need
from resnet_train.data.archive import Archive, obtain
from resnet_train.data.decode import UnreadableImage
from resnet_train.data.files import Files, ImageFiles, Images, one_line_errors
from resnet_train.data.hash_split import split_of
from resnet_train.data.image_cache import Cached, cache_folders, cached_images, report_unreadable
from resnet_train.data.published import Source, source_of
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import identify
from resnet_train.runs.memory import check_room

ENDINGS = (".jpeg", ".jpg")
EUROSAT_TEST_FRACTION = 0.2  # as in most publications, whose splits differ


@dataclass(frozen=True)
class Listed:
    """The image files of both splits."""

    train: ImageFiles
    test: ImageFiles
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """A data set of image files, as it was published."""

    archive: Archive
    num_train: int
    num_test: int
    list_images: Callable[[Path], Listed]


# ----------------------------------------------------------------------------------------------------------- listing


def list_tiny_imagenet(folder: Path) -> Listed:
    """``train/<wnid>/images/*.JPEG``; ``val/images/*.JPEG`` with labels in ``val/val_annotations.txt``.

    The labels of its test images are not public, so those of ``val/`` are the test images, as everywhere.
    """
    wnids = sorted((folder / "wnids.txt").read_text(encoding="utf-8").split())
    words = (line.split("\t") for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines())
    names = {wnid: name.split(",")[0] for wnid, name in words}
    annotations = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    label_of = {f"images/{name}": wnid for name, wnid, *_ in (line.split("\t") for line in annotations)}
    train = by_class(folder / "train", {wnid: f"{wnid}/images" for wnid in wnids})
    found = [f"images/{name}" for name in images_in(folder / "val" / "images")]
    pairs = sorted((wnids.index(label_of[name]), name) for name in found)
    test = image_files(folder / "val", [name for _, name in pairs], [label for label, _ in pairs])
    return Listed(train, test, distinct(wnids, names))


def distinct(wnids: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    """Readable names of classes; where two classes have the same (a crane is a bird and a machine), with the wnid."""
    found = [names[wnid] for wnid in wnids]
    return tuple(
        name if found.count(name) == 1 else f"{name} ({wnid})" for wnid, name in zip(wnids, found, strict=True)
    )


# The first names in torchvision 0.29, datasets/imagenette.py.
IMAGENETTE_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def list_imagenette(folder: Path) -> Listed:
    """``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, which are the test images."""
    train, test = (by_class(folder / split, {wnid: wnid for wnid in IMAGENETTE_NAMES}) for split in ("train", "val"))
    return Listed(train, test, tuple(IMAGENETTE_NAMES.values()))


EUROSAT_CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)


def list_eurosat(folder: Path) -> Listed:
    """``<class>/*.jpg``, which came without a split: one image in five is a test image, by a hash of its name."""
    files = by_class(folder, {name: name for name in EUROSAT_CLASSES})
    splits = np.array([split_of(Path(name).name, test_fraction=EUROSAT_TEST_FRACTION) for name in files.names])
    train, test = (
        image_files(folder, [files.names[number] for number in chosen], files.labels[chosen].tolist())
        for chosen in (np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test"))
    )
    return Listed(train, test, EUROSAT_CLASSES)


def by_class(folder: Path, places: dict[str, str]) -> ImageFiles:
    """The images in ``places`` (class to folder below ``folder``), sorted by class and name."""
    names: list[str] = []
    labels: list[int] = []
    for label, place in enumerate(places.values()):
        found = images_in(folder / place)
        names += [f"{place}/{name}" for name in found]
        labels += [label] * len(found)
    return image_files(folder, names, labels)


def images_in(folder: Path) -> list[str]:
    """Sorted names of the images in ``folder``."""
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if name.lower().endswith(ENDINGS) and not name.startswith("."))


def image_files(folder: Path, names: Sequence[str], labels: Sequence[int]) -> ImageFiles:
    """Names below ``folder``, and their labels."""
    return ImageFiles(folder, tuple(names), np.array(labels, dtype=np.int64))


# ----------------------------------------------------------------------------------------------------------- reading

TINY_IMAGENET = Tree(
    Archive(
        title="Tiny ImageNet",
        filename="tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        folder="tiny-imagenet-200",
        landmarks=("train", "val/images", "val/val_annotations.txt", "words.txt", "wnids.txt"),
    ),
    num_train=100_000,
    num_test=10_000,
    list_images=list_tiny_imagenet,
)
IMAGENETTE = Tree(
    Archive(
        title="Imagenette",
        filename="imagenette2-160.tgz",
        md5="e793b78cc4c9e9a4ccc0c1155377a412",
        folder="imagenette2-160",
        landmarks=tuple(f"{split}/{wnid}" for split in ("train", "val") for wnid in IMAGENETTE_NAMES),
    ),
    num_train=9_469,
    num_test=3_925,
    list_images=list_imagenette,
)
EUROSAT = Tree(
    Archive(
        title="EuroSAT",
        filename="EuroSAT.zip",
        md5="c8fa014336c82ac7804f0398fcb19387",
        folder="2750",
        landmarks=EUROSAT_CLASSES,
    ),
    num_train=21_700,
    num_test=5_300,
    list_images=list_eurosat,
)


def tree_of(dataset: ImageArchiveConfig) -> Tree:
    """What was published under the name that the configuration asks for."""
    match dataset:
        case TinyImageNetConfig():
            return TINY_IMAGENET
        case ImagenetteConfig():
            return IMAGENETTE
        case EuroSATConfig():
            return EUROSAT
    raise AssertionError(f"no archive for {type(dataset).__name__}")


def load_image_archive(dataset: ImageArchiveConfig) -> Files:
    """Read the images as squares of ``image_size`` pixels, after getting and unpacking the archive where needed.

    Raises `ConfigError` where it is missing, cannot be downloaded, is corrupt, or holds images that cannot be read: all
    of them at once.
    """
    return read_tree(tree_of(dataset), dataset, source_of(dataset))


def read_tree(tree: Tree, dataset: ImageArchiveConfig, source: Source) -> Files:
    """Get and read one archive; raises as `load_image_archive`."""
    with one_line_errors(source.root):
        folder = obtain(tree.archive, source)
        listed = listed_whole(tree, folder)
        splits = (listed.train, listed.test)
        # Refused before the images are decoded:
        num_train_images(dataset, len(listed.train.names))
        check_room(data_need(dataset, sum(len(files.names) for files in splits)))
        caches = cache_folders(folder, dataset.cache)
        found: list[Cached] = []
        unreadable: list[UnreadableImage] = []
        for files in splits:
            cached = cached_images(files, caches, image_size=dataset.image_size)
            if isinstance(cached, Cached):
                found.append(cached)
            else:
                unreadable += cached
        report_unreadable(unreadable, folder, caches[0])
    train, test = (Images(one.images, files.labels) for one, files in zip(found, splits, strict=True))
    digest = hashlib.sha256()
    for one, files in zip(found, splits, strict=True):
        digest.update("\0".join(files.names).encode() + one.sums.tobytes())
    sizes = {"train": len(train.labels), "test": len(test.labels)}
    paths = [
        tuple((files.folder / name).relative_to(source.root).as_posix() for name in files.names) for files in splits
    ]
    identity = identify(listed.classes, sizes, f"{tree.archive.title} {digest.hexdigest()}")
    return Files(train, test, listed.classes, identity, train_paths=paths[0], test_paths=paths[1])


def listed_whole(tree: Tree, folder: Path) -> Listed:
    """The images in ``folder``; raises `ConfigError` where they are not those that were published."""
    advice = f"delete {folder}, and it is unpacked or downloaded again"
    try:
        listed = tree.list_images(folder)
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder}: expected {tree.archive.title}, got labels that are corrupt; {advice}") from error
    got = len(listed.train.names), len(listed.test.names)
    if got != (tree.num_train, tree.num_test):
        raise ConfigError(
            f"{folder}: expected {tree.num_train:,} and {tree.num_test:,} images of {tree.archive.title}, got "
            f"{got[0]:,} and {got[1]:,}; {advice}"
        )
    return listed
