"""The user's own images, divided into splits: by a hash of each name, or as a table says. Without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.files import ImageFiles
from resnet_train.data.folder_names import composed, some
from resnet_train.data.hash_split import better_fractions, place_of, split_of
from resnet_train.errors import ConfigError

BY_HAND = "add images, or say the splits yourself, in folders train/ and test/ or in a table (dataset.labels)"


def names_within(files: ImageFiles, *, in_folders: bool) -> list[str]:
    """By what an image is known and its split drawn: its name within its class' folder, or its path in a table."""
    names = map(composed, files.names)
    return [name.partition("/")[2] for name in names] if in_folders else list(names)


def split_by_hash(
    dataset: ImageFolderConfig, files: ImageFiles, classes: tuple[str, ...], *, in_folders: bool
) -> dict[str, ImageFiles]:
    """``files`` of all splits, split by a hash of their names.

    An image that is added moves no other, one that is moved to another class stays in its split, and copies of one file
    in two classes do not lie on both sides. Raises `ConfigError` where a class has no image in a split, with the
    fractions that serve if there are some.
    """
    val, test = dataset.val_fraction, dataset.test_fraction
    names = names_within(files, in_folders=in_folders)
    listed = parted(files, [split_of(name, val_fraction=val, test_fraction=test) for name in names])
    listed = {split: listed[split] for split in ("train", "val", "test") if split != "val" or val}
    for split, one in listed.items():
        if missing := without_images(one, files, classes):
            places: list[list[float]] = [[] for _ in classes]
            for name, label in zip(names, files.labels.tolist(), strict=True):
                places[label].append(place_of(name))
            better = better_fractions(places, val_fraction=val, test_fraction=test)
            raise ConfigError(
                f"{files.folder}: expected {split} images of each class, by a hash of their names, got none of "
                f"{some(missing)}; {f'try {overrides(better)}' if better else BY_HAND}"
            )
    return listed


def overrides(fractions: tuple[float, float]) -> str:
    """``dataset.test_fraction=0.3``, and that of validation if there is one."""
    val, test = fractions
    return f"dataset.test_fraction={test:g}" + (f" dataset.val_fraction={val:g}" if val else "")


def split_by_column(
    files: ImageFiles, splits: Sequence[str], classes: tuple[str, ...], *, wanted: Sequence[str], name: str
) -> dict[str, ImageFiles]:
    """``files`` as the table ``name`` says; raises `ConfigError` where a class has no training images, or a split none.

    Images of formats that are not read are no longer among them.
    """
    every = parted(files, splits)
    listed = {split: every[split] for split in wanted}
    for split, one in listed.items():
        missing = without_images(one, files, classes)
        if missing and (split == "train" or not one.names):
            raise ConfigError(
                f"{files.folder}: expected {split} images of each class, by {name}, got none of {some(missing)} in a "
                f"format that is read; convert them, or change the rows"
            )
    return listed


def parted(files: ImageFiles, splits: Sequence[str]) -> dict[str, ImageFiles]:
    """``files`` by the split of each."""
    found: dict[str, ImageFiles] = {}
    for split in ("train", "val", "test"):
        index = np.flatnonzero(np.array(splits) == split)
        names = tuple(files.names[number] for number in index)
        found[split] = ImageFiles(files.folder, names, files.labels[index], is_root=True)
    return found


def without_images(listed: ImageFiles, files: ImageFiles, classes: tuple[str, ...]) -> list[str]:
    """The classes of which ``listed`` has no image, with the number of those in all ``files``."""
    all_images, images = (np.bincount(one.labels, minlength=len(classes)) for one in (files, listed))
    return [
        f"{name!r} ({number:,} image{'s' * (number != 1)})"
        for name, number, here in zip(classes, all_images.tolist(), images.tolist(), strict=True)
        if not here
    ]
