"""The user's own images, one folder a class or by a table: listed here, decoded by `image_cache`. Without torch.

Names are compared in Unicode's composed form (NFC), in which systems differ: an é copied from a Mac may be two
characters. Order and labels are the same wherever a data set is copied to.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from resnet_train.config.dataset import ImageFolderConfig, num_train_images
from resnet_train.config.size import data_need
from resnet_train.data.decode import UnreadableImage, image_endings
from resnet_train.data.files import Files, ImageFiles, Images, folder_of, one_line_errors
from resnet_train.data.folder_layout import Layout, layout
from resnet_train.data.folder_names import (
    composed,
    ending,
    is_own_file,
    is_own_folder,
    num_images,
    some,
    visible_folders,
)
from resnet_train.data.folder_splits import names_within, split_by_column, split_by_hash
from resnet_train.data.image_cache import Cached, cache_folders, cached_images, report_unreadable
from resnet_train.data.label_table import LabelTable, labelled_images, read_labels
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import DataIdentity, identify
from resnet_train.runs.memory import check_room


def load_imagefolder(dataset: ImageFolderConfig) -> Files:
    """Read the images of `layout`'s folders, ``<class>/**`` in each, or those of a table, as squares of ``image_size``.

    Classes are the folders of ``train/``, or the table's labels, sorted; images are sorted by class and path. Raises
    `ConfigError` for missing or empty folders, a class that ``train/`` lacks, and images that cannot be read: all of
    them at once.
    """
    root = folder_of(dataset.root)
    with one_line_errors(root):
        source = source_of(dataset, root)
        classes = classes_of(source)
        left_out: Counter[str] = Counter()
        if isinstance(source, LabelTable):
            listed = list_by_table(dataset, source, root, left_out)
        else:
            listed = list_by_folders(dataset, source, classes, left_out)
        # Refused before the images are decoded:
        num_train_images(dataset, len(listed["train"].names))
        check_room(data_need(dataset, sum(len(files.names) for files in listed.values())))
        caches = cache_folders(root, dataset.cache)
        found: dict[str, Cached] = {}
        unreadable: list[UnreadableImage] = []
        for split, files in listed.items():
            cached = cached_images(files, caches, image_size=dataset.image_size)
            if isinstance(cached, Cached):
                found[split] = cached
            else:
                unreadable += cached
        report_unreadable(unreadable, root, caches[0])
    images = {split: Images(found[split].images, files.labels) for split, files in listed.items()}
    return Files(
        images["train"],
        images["test"],
        classes,
        identity=identity_of(classes, listed, found, in_folders=isinstance(source, Layout)),
        names=tuple(map(composed, listed["train"].names)),
        train_paths=listed["train"].paths(),
        test_paths=listed["test"].paths(),
        left_out=described(left_out),
        val=images.get("val"),
        val_paths=listed["val"].paths() if "val" in listed else (),
        taken=source.described(dataset),
    )


def source_of(dataset: ImageFolderConfig, root: Path) -> Layout | LabelTable:
    """What says which images there are: a table, or folders."""
    return read_labels(dataset, root) if dataset.labels else layout(dataset, root)


def classes_of(source: Layout | LabelTable) -> tuple[str, ...]:
    """Names of the classes, sorted; at least two, else `ConfigError`."""
    return source.classes if isinstance(source, LabelTable) else class_names(source.train)


def list_by_table(
    dataset: ImageFolderConfig, table: LabelTable, root: Path, left_out: Counter[str]
) -> dict[str, ImageFiles]:
    """As `list_by_folders`; what lies beside the images of the table without a label is counted."""
    files, splits = labelled_images(table, root, left_out)
    labelled = {row.name for row in table.rows} | set(files.names)
    images = (name for name in walk(root, root) if ending(name) in image_endings())
    if others := sum(name not in labelled for name in images):
        left_out["without a label"] += others
    if not table.has_splits:
        return split_by_hash(dataset, files, table.classes, in_folders=False)
    return split_by_column(files, splits, table.classes, wanted=table.splits(), name=table.path.name)


def list_by_folders(
    dataset: ImageFolderConfig, folders: Layout, classes: tuple[str, ...], left_out: Counter[str]
) -> dict[str, ImageFiles]:
    """The images of ``train``, of ``test`` and, where there are any, of ``val``."""
    if folders.test is None:
        return split_by_hash(dataset, list_images(folders.train, classes, left_out), classes, in_folders=True)
    given = {"train": folders.train, "val": folders.val, "test": folders.test}
    return {split: list_images(folder, classes, left_out) for split, folder in given.items() if folder is not None}


def identity_of(
    classes: tuple[str, ...], listed: Mapping[str, ImageFiles], found: Mapping[str, Cached], *, in_folders: bool
) -> DataIdentity:
    """The identity of all splits, by contents and names: those within the classes' folders, or a table's paths."""
    named: dict[str, dict[str, bytes]] = {}
    for split, files in listed.items():
        names = names_within(files, in_folders=in_folders)
        for inside, label, content in zip(names, files.labels, found[split].sums, strict=True):
            named.setdefault(f"{split}/{classes[label]}", {})[inside] = content.tobytes()
    return identify(classes, {split: len(files.names) for split, files in listed.items()}, "imagefolder", named)


def described(left_out: Counter[str]) -> str:
    """``4 files: .heic 2, .txt 2``; empty where nothing was left out."""
    if not left_out:
        return ""
    kinds = [f"{kind} {number:,}" for kind, number in sorted(left_out.items(), key=lambda item: (-item[1], item[0]))]
    return f"{left_out.total():,} file{'s' * (left_out.total() > 1)}: {some(kinds)}"


# ----------------------------------------------------------------------------------------------------------- folders


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
