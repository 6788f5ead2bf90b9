"""Folders of images: classes, order, links, and folders that are not as expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.available import check_available
from resnet_train.data.imagefolder import load_imagefolder
from resnet_train.errors import ConfigError


def test_classes_and_images_are_sorted(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], colours: dict[str, tuple[int, int, int]]
) -> None:
    check_available(imagefolder(root))
    files = load_imagefolder(imagefolder(root))
    assert files.classes == ("blue", "green", "red")
    assert files.train.labels.dtype == np.int64
    assert files.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files.test.labels.tolist() == [0, 1, 2]
    for split in (files.train, files.test):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split.labels), 8, 8, 3)
        expected = np.array([colours[files.classes[label]] for label in split.labels])[:, None, None]
        np.testing.assert_allclose(split.images.astype(int), np.broadcast_to(expected, split.images.shape), atol=2)


def test_test_stands_in_for_val(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    (root / "val").rename(root / "test")
    assert len(load_imagefolder(imagefolder(root)).test.labels) == 3


def test_folders_of_the_split_must_exist(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    def message(got: str) -> str:
        return exactly(
            f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}; "
            f"add dataset.root=FOLDER"
        )

    (root / "val").rename(root / "validation")
    with pytest.raises(ConfigError, match=message("neither val/ nor test/")):
        check_available(imagefolder(root))
    (root / "train").rename(root / "training")
    with pytest.raises(ConfigError, match=message("no train/")):
        check_available(imagefolder(root))
    root.rename(root.with_name("moved"))
    with pytest.raises(ConfigError, match=message("no such folder")):
        load_imagefolder(imagefolder(root))


@pytest.mark.parametrize(("kept", "got"), [((), "none"), (("red",), "red")])
def test_two_classes_are_the_least(
    root: Path,
    kept: tuple[str, ...],
    got: str,
    imagefolder: Callable[..., ImageFolderConfig],
    colours: dict[str, tuple[int, int, int]],
    exactly: Callable[[str], str],
) -> None:
    for name in set(colours) - set(kept):
        (root / "train" / name).rename(root / "train" / f".{name}")
    message = f"{root}/train: expected two or more folders, one a class, got {got}; put the images into them"
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(imagefolder(root))


def test_a_class_that_train_lacks_is_refused(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    (root / "val/green").rename(root / "val/Green")
    message = (
        f"{root}/val/Green: expected one of the 3 classes of train/, got 'Green'; rename or remove the folder, or add "
        f"the class to train/"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_refused(
    root: Path, split: str, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    for path in (root / split / "red").glob("?.*"):
        path.unlink()
    if split == "train":
        (root / "train/red/more/c.JPG").unlink()
    message = (
        f"{root}/{split}/red: expected images (.bmp, .gif, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp), got none; "
        f"add some or remove the folder"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


def test_val_without_classes_is_refused(
    root: Path,
    imagefolder: Callable[..., ImageFolderConfig],
    colours: dict[str, tuple[int, int, int]],
    exactly: Callable[[str], str],
) -> None:
    for name in colours:
        (root / "val" / name).rename(root / "val" / f".{name}")
    message = f"{root}/val: expected one folder a class, as in train/, got none; put the images into them"
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


def test_links_are_followed(root: Path, tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    (root / "train/red/more").rename(tmp_path / "more")
    (root / "train/red/more").symlink_to(tmp_path / "more")
    (root / "train/blue").rename(tmp_path / "blue")
    (root / "train/blue").symlink_to(tmp_path / "blue")
    assert len(load_imagefolder(imagefolder(root)).train.labels) == 9


def test_a_link_back_to_where_it_lies_is_refused(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    (root / "train/red/more/again").symlink_to(root / "train/red")
    message = (
        f"dataset.root: expected to read and write files in {root}, got Too many levels of symbolic links "
        f"({root}/train/red/more/again); see to its permissions and free space, or add dataset.root=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))
