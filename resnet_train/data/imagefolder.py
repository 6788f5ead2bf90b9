"""The user's own images, one folder a class: listed here, decoded by `image_cache`. Without torch.

Names are compared in Unicode's composed form (NFC), in which systems differ: an é copied from a Mac may be two
characters. Order and labels are the same wherever a data set is copied to.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

import numpy as np

from resnet_train.config.dataset import ImageFolderConfig, num_train_images
from resnet_train.config.size import data_need
from resnet_train.data.decode import UnreadableImage, image_endings
from resnet_train.data.files import Files, ImageFiles, Images, folder_of, one_line_errors
from resnet_train.data.image_cache import Cached, cache_folders, cached_images, report_unreadable
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import DataIdentity, identify
from resnet_train.runs.memory import check_room

# What systems put beside images: not the user's own. Synology's @eaDir holds thumbnails. In lower case.
SYSTEM_FOLDERS = {
    "@eadir",
    "@recycle",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SHOWN = 5  # names of a kind in a message


def load_imagefolder(dataset: ImageFolderConfig) -> Files:
    """Read ``root/train/<class>/**`` and ``root/val/<class>/**`` (or ``test/``) as squares of ``image_size`` pixels.

    Classes are the folders of ``train/``, sorted; images are sorted by class and path. Raises `ConfigError` for
    missing or empty folders, a class that ``train/`` lacks, and images that cannot be read: all of them at once.
    """
    root = folder_of(dataset.root)
    with one_line_errors(root):
        folders = split_folders(root)
        classes = class_names(folders[0])
        left_out: Counter[str] = Counter()
        listed = [list_images(folder, classes, left_out) for folder in folders]
        # Refused before the images are decoded:
        num_train_images(dataset, len(listed[0].names))
        check_room(data_need(dataset, sum(len(files.names) for files in listed)))
        caches = cache_folders(root, dataset.cache)
        found: list[Cached] = []
        unreadable: list[UnreadableImage] = []
        for files in listed:
            cached = cached_images(files, caches, image_size=dataset.image_size)
            if isinstance(cached, Cached):
                found.append(cached)
            else:
                unreadable += cached
        report_unreadable(unreadable, root, caches[0])
        train, test = (Images(one.images, files.labels) for one, files in zip(found, listed, strict=True))
    return Files(
        train,
        test,
        classes,
        identity=identity_of(classes, *zip(listed, found, strict=True)),
        names=tuple(map(composed, listed[0].names)),
        train_paths=listed[0].paths(),
        test_paths=listed[1].paths(),
        left_out=described(left_out),
    )


def identity_of(
    classes: tuple[str, ...], train: tuple[ImageFiles, Cached], test: tuple[ImageFiles, Cached]
) -> DataIdentity:
    """The identity of both splits, by names and contents."""
    images: dict[str, int] = {}
    named: dict[str, dict[str, bytes]] = {}
    for split, (files, cached) in (("train", train), ("test", test)):
        images[split] = len(files.names)
        for name, label, content in zip(files.names, files.labels, cached.sums, strict=True):
            inside = composed(name).partition("/")[2]
            named.setdefault(f"{split}/{classes[label]}", {})[inside] = content.tobytes()
    return identify(classes, images, "imagefolder", named)


def composed(name: str) -> str:
    """``name`` in the form in which names are compared: NFC, with ``/`` between folders."""
    return unicodedata.normalize("NFC", PurePath(name).as_posix())


def described(left_out: Counter[str]) -> str:
    """``4 files: .heic 2, .txt 2``; empty where nothing was left out."""
    if not left_out:
        return ""
    kinds = [f"{kind} {number:,}" for kind, number in sorted(left_out.items(), key=lambda item: (-item[1], item[0]))]
    return f"{left_out.total():,} file{'s' * (left_out.total() > 1)}: {some(kinds)}"


def some(texts: list[str]) -> str:
    """The first of ``texts``, and how many more there are."""
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


# ----------------------------------------------------------------------------------------------------------- folders


def split_folders(root: Path) -> tuple[Path, Path]:
    """The folders of the training and the test images; raises `ConfigError` if one is missing."""
    train = root / "train"
    test = next((folder for folder in (root / "val", root / "test") if folder.is_dir()), None)
    if train.is_dir() and test:
        return train, test
    got, fix = without_train(root) if not train.is_dir() else without_test(root)
    raise ConfigError(
        f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}; {fix}"
    )


def without_train(root: Path) -> tuple[str, str]:
    """What lies in ``root`` instead of train/, and what to do about it."""
    if not root.is_dir():
        return "no such folder", "add dataset.root=FOLDER"
    if root.name in ("train", "val", "test") and (root.parent / "train").is_dir():
        return "no train/", f"add dataset.root={root.parent}"
    folders = [name for name in visible_folders(root) if num_images(root / name)]
    if folders:
        return (
            f"folders of images without train/ around them ({some(folders)})",
            "move them into train/, and some images of each (one in five, say) into the same folders below val/",
        )
    if images := num_images(root):
        return f"{images:,} images and no folders", "put the images of each class into train/CLASS/ and val/CLASS/"
    return "no train/", "add dataset.root=FOLDER"


def without_test(root: Path) -> tuple[str, str]:
    """What stands in for val/ in ``root``, and what to do about it."""
    for name in visible_folders(root):
        if name.lower() in ("validation", "valid", "dev", "val", "test", "testing"):
            return f"{name}/", f"rename {name}/ to val/"
    return (
        "neither val/ nor test/",
        "move some images of each class (one in five, say) from train/CLASS/ into val/CLASS/",
    )


def class_names(train: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; raises `ConfigError` if there are fewer than two, or two look the same."""
    names = sorted(class_folders(train))
    if len(names) < 2:
        got = names[0] if names else "none"
        if images := num_images(train):
            got += f", and {images:,} images outside of folders"
        raise ConfigError(f"{train}: expected two or more folders, one a class, got {got}; put the images into them")
    return tuple(names)


def class_folders(folder: Path) -> dict[str, str]:
    """Names of classes, and of their folders; raises `ConfigError` where two folders are one class."""
    found: dict[str, str] = {}
    for name in visible_folders(folder):
        if found.setdefault(composed(name), name) != name:
            raise ConfigError(
                f"{folder}: expected one folder a class, got two that are both called {composed(name)!r} and differ "
                f"only in how Unicode writes it; move the images into one of them"
            )
    return found


def visible_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones and those of the system."""
    return sorted(entry.name for entry in folder.iterdir() if is_own_folder(entry.name) and entry.is_dir())


def is_own_folder(name: str) -> bool:
    """Whether a folder is the user's own, by its name."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS


def is_own_file(name: str) -> bool:
    """Whether a file is the user's own, by its name."""
    return not name.startswith(".") and name.lower() not in SYSTEM_FILES


def num_images(folder: Path) -> int:
    """Number of images that lie in ``folder`` itself."""
    return sum(is_own_file(path.name) and ending(path.name) in image_endings() for path in folder.iterdir())


def ending(name: str) -> str:
    """``.jpg`` for ``photo.JPG``."""
    return PurePath(name).suffix.lower()


# ------------------------------------------------------------------------------------------------------------ images


def list_images(folder: Path, classes: tuple[str, ...], left_out: Counter[str]) -> ImageFiles:
    """All images of one split; what else lies there is counted in ``left_out`` by its ending.

    Raises `ConfigError` for classes that are unknown or have none, all of a kind at once.
    """
    folders = class_folders(folder)
    if not folders:
        raise ConfigError(f"{folder}: expected one folder a class, as in train/, got none; put the images into them")
    unknown = [repr(name) for name in folders if name not in classes]
    if unknown:
        raise ConfigError(
            f"{folder}: expected folders of the {len(classes)} classes of train/, got {some(unknown)}; rename or "
            f"remove {'it' if len(unknown) == 1 else 'them'}, or add the class to train/"
        )
    names: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for class_name in sorted(folders):
        files = list(walk(folder, folder / folders[class_name]))
        found = sorted(name for name in files if ending(name) in image_endings())
        found.sort(key=composed)
        left_out.update(ending(name) or "no ending" for name in files if ending(name) not in image_endings())
        if not found:
            kinds = Counter(ending(name) or "no ending" for name in files)
            empty.append(f"{folders[class_name]} ({described(kinds) or 'no files'})")
        names += found
        labels += [classes.index(class_name)] * len(found)
    if empty:
        raise ConfigError(
            f"{folder}: expected images (.jpg, .png, .webp and what else Pillow reads) in each folder, got none in "
            f"{some(empty)}; add some, or remove the folder{'s' * (len(empty) > 1)}"
        )
    if outside := num_images(folder):
        left_out["outside of the class folders"] += outside
    return ImageFiles(folder, tuple(names), np.array(labels, dtype=np.int64))


def refuse(error: OSError) -> None:
    """Raise ``error``: ``os.walk`` would pass over a folder that cannot be read."""
    raise error


def walk(folder: Path, top: Path, *, on_error: Callable[[OSError], None] = refuse) -> Iterator[str]:
    """Paths, relative to ``folder``, of the files anywhere under ``top``; what is hidden or the system's is not seen.

    Links are followed; one that leads back to where it lies is an error: its images would count many times. Where
    ``on_error`` returns, the folder that it was told of is passed over.
    """
    for path, folders, files in os.walk(top, onerror=on_error, followlinks=True):
        folders[:] = filter(is_own_folder, folders)
        for link in [Path(path, name) for name in folders]:
            if link.is_symlink() and Path(path).resolve().is_relative_to(link.resolve()):
                on_error(OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(link)))
                folders.remove(link.name)
        inside = Path(path).relative_to(folder).as_posix()
        # With / on every system, so that the order is one.
        yield from (name if inside == "." else f"{inside}/{name}" for name in files if is_own_file(name))
