"""Which folders hold which images of a user's data set: by the folders' names, or none but those of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.folder_names import num_images, visible_folders
from resnet_train.errors import ConfigError

VAL = ("val", "valid", "validation")  # names of one folder, in any case


@dataclass(frozen=True)
class Layout:
    """Folders with one folder a class each; without ``test``, ``train`` holds all images, to be split by their names.

    ``val`` chooses the best checkpoint; it is there only where ``test`` is another folder.
    """

    train: Path
    val: Path | None
    test: Path | None

    def described(self, dataset: ImageFolderConfig) -> str:
        """Which images serve as what, in words."""
        if self.test is None:
            return f"no train/: by a hash of each file's name {hashed(dataset)}"
        if self.val is None:
            return f"test images from {self.test.name}/"
        return f"{self.val.name}/ chooses the best checkpoint, {self.test.name}/ is scored once"


def hashed(dataset: ImageFolderConfig) -> str:
    """What a hash makes of images without splits, in words."""
    parts = f"{dataset.test_fraction:g} of the images are test images"
    return parts + (f", {dataset.val_fraction:g} choose the best checkpoint" if dataset.val_fraction else "")


def layout(dataset: ImageFolderConfig, root: Path) -> Layout:
    """What lies in ``root``; raises `ConfigError` where images for training or for the test are missing."""
    folders = visible_folders(root) if root.is_dir() else []
    found = [name for name in folders if name.lower() in VAL]
    tests = [name for name in folders if name.lower() == "test"]
    for names in (found, tests):
        if len(names) > 1:
            got = " and ".join(f"{name}/" for name in names)
            raise ConfigError(f"dataset.root: expected one of {got} in {root}, got all of them; rename or remove one")
    train, val = root / "train", root / found[0] if found else None
    test = root / tests[0] if tests else None
    if train.is_dir() and (val or test):
        _check_no_fraction(dataset, root, test if test and val else None)
        return Layout(train, val if test else None, test or val)
    if not train.is_dir() and not val and not test and _of_classes(root, folders):
        if dataset.val_size and dataset.val_fraction:
            raise ConfigError(
                f"dataset.val_size={dataset.val_size} and dataset.val_fraction={dataset.val_fraction:g} contradict "
                f"each other: give one"
            )
        return Layout(root, None, None)
    got, fix = _without_train(root) if not train.is_dir() else _without_test(root)
    raise ConfigError(
        f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}; {fix}"
    )


def _check_no_fraction(dataset: ImageFolderConfig, root: Path, test: Path | None) -> None:
    """Raise `ConfigError` where images of train/ are to be held out in a way that these folders do not admit."""
    if dataset.val_fraction:
        raise ConfigError(
            f"dataset.val_fraction: expected 0 where {root} has train/, got {dataset.val_fraction:g}; hold images of "
            f"train/ out with dataset.val_size=NUMBER"
        )
    if test and dataset.val_size:
        raise ConfigError(
            f"dataset.val_size: expected 0 where {root} has validation images and {test.name}/, got "
            f"{dataset.val_size}; remove it, or the folder of the validation images"
        )


def _of_classes(root: Path, folders: list[str]) -> bool:
    """Whether images lie in folders right below ``root``, which is no split of a data set itself."""
    beside = root.name.lower() in ("train", "test", *VAL) and (root.parent / "train").is_dir()
    return not beside and any(num_images(root / name) for name in folders)


def _without_train(root: Path) -> tuple[str, str]:
    """What lies in ``root`` instead of train/, and what to do about it."""
    if not root.is_dir():
        return "no such folder", "add dataset.root=FOLDER"
    if root.name.lower() in ("train", "test", *VAL) and (root.parent / "train").is_dir():
        return "no train/", f"add dataset.root={root.parent}"
    if images := num_images(root):
        return f"{images:,} images and no folders", "put the images of each class into a folder of its own, CLASS/"
    return "no train/", "add dataset.root=FOLDER"


def _without_test(root: Path) -> tuple[str, str]:
    """What stands in for val/ in ``root``, and what to do about it."""
    for name in visible_folders(root):
        if name.lower() in ("dev", "testing"):
            return f"{name}/", f"rename {name}/ to val/"
    return (
        "neither val/ nor test/",
        "move some images of each class (one in five, say) from train/CLASS/ into val/CLASS/, or put the folders of "
        "the classes right into the root: they are split then",
    )
