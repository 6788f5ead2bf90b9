"""The user's own images, one folder a class: listed here, decoded by `image_cache`. Without torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.files import Files, ImageFiles, Images, folder_of, one_line_errors
from resnet_train.data.image_cache import cache_folders, cached_images
from resnet_train.errors import ConfigError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load_imagefolder(dataset: ImageFolderConfig) -> Files:
    """Read ``root/train/<class>/**`` and ``root/val/<class>/**`` (or ``test/``) as squares of ``image_size`` pixels.

    Classes are the folders of ``train/``, sorted; images are sorted by class and path. Raises `ConfigError` for
    missing or empty folders, a class that ``train/`` lacks, and images that cannot be read.
    """
    root = folder_of(dataset.root)
    with one_line_errors(root):
        folders = split_folders(root)
        classes = class_names(folders[0])
        listed = [list_images(folder, classes) for folder in folders]
        caches = cache_folders(root, dataset.cache)
        train, test = (
            Images(cached_images(files, caches, image_size=dataset.image_size), files.labels) for files in listed
        )
    return Files(train, test, classes)


def split_folders(root: Path) -> tuple[Path, Path]:
    """The folders of the training and the test images; raises `ConfigError` if one is missing."""
    train = root / "train"
    test = next((folder for folder in (root / "val", root / "test") if folder.is_dir()), None)
    if train.is_dir() and test:
        return train, test
    got = "neither val/ nor test/" if train.is_dir() else "no train/" if root.is_dir() else "no such folder"
    raise ConfigError(
        f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}; "
        f"add dataset.root=FOLDER"
    )


def class_names(train: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; raises `ConfigError` if there are fewer than two."""
    names = visible_folders(train)
    if len(names) < 2:
        got = names[0] if names else "none"
        raise ConfigError(f"{train}: expected two or more folders, one a class, got {got}; put the images into them")
    return tuple(names)


def visible_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path, classes: tuple[str, ...]) -> ImageFiles:
    """All images of one split; raises `ConfigError` for a class that is unknown or has none."""
    names: list[str] = []
    labels: list[int] = []
    for class_name in visible_folders(folder):
        if class_name not in classes:
            raise ConfigError(
                f"{folder / class_name}: expected one of the {len(classes)} classes of train/, got {class_name!r}; "
                f"rename or remove the folder, or add the class to train/"
            )
        found = sorted(walk(folder, folder / class_name))
        if not found:
            raise ConfigError(
                f"{folder / class_name}: expected images ({', '.join(EXTENSIONS)}), got none; "
                f"add some or remove the folder"
            )
        names += found
        labels += [classes.index(class_name)] * len(found)
    if not names:
        raise ConfigError(f"{folder}: expected one folder a class, as in train/, got none; put the images into them")
    return ImageFiles(folder, tuple(names), np.array(labels, dtype=np.int64))


def walk(folder: Path, top: Path) -> Iterator[str]:
    """Paths, relative to ``folder``, of the images anywhere under ``top``; hidden files and folders do not count.

    Links are followed; one that leads back to where it lies is an ``OSError``: its images would count many times.
    """

    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over a folder that cannot be read

    for path, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (Path(path, name) for name in folders):
            if link.is_symlink() and Path(path).resolve().is_relative_to(link.resolve()):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(link))
        inside = Path(path).relative_to(folder)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                yield (inside / name).as_posix()  # in one order on every system
