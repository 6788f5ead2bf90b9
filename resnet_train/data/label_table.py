"""Labels of the user's own images from a CSV file, where no folders say them. Without torch."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TextIO

import numpy as np

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.config.paths import expanded
from resnet_train.data.decode import image_endings
from resnet_train.data.files import ImageFiles, one_line
from resnet_train.data.folder_layout import VAL, hashed
from resnet_train.data.folder_names import composed, ending, some
from resnet_train.errors import ConfigError

COLUMNS = ("path", "label", "split")  # the last one may be missing
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(VAL, "val")


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    line: int  # of the file, from 1
    name: str  # relative to dataset.root, with / between folders
    label: str
    split: str  # train, val, test; empty where the table has none


@dataclass(frozen=True)
class LabelTable:
    """What a table says of images, which are not looked at yet."""

    path: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]  # sorted; those of the training images

    @property
    def has_splits(self) -> bool:
        """Whether the table says which images serve as what."""
        return bool(self.rows[0].split)

    def described(self, dataset: ImageFolderConfig) -> str:
        """Which images serve as what, in words."""
        if not self.has_splits:
            return f"{self.path.name} has no splits: by a hash of each path {hashed(dataset)}"
        named = {row.split for row in self.rows}
        if named == {"train", "val", "test"}:
            return f"of {self.path.name}, val chooses the best checkpoint, test is scored once"
        return f"test images are {'test' if 'test' in named else 'val'} of {self.path.name}"


def read_labels(dataset: ImageFolderConfig, root: Path) -> LabelTable:
    """The table ``dataset.labels``, a CSV file with the columns path, label and, maybe, split.

    Raises `ConfigError` for a file that cannot be read, rows that are wrong, and classes or splits that are missing.
    """
    assert dataset.labels, "only where there is a table"
    path = expanded("dataset.labels", dataset.labels).absolute()
    try:
        # PowerShell and Excel put a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = tuple(_rows(file, path))
    except OSError as error:
        there = path != root / path.name and (root / path.name).is_file()
        fix = f"add dataset.labels={root / path.name}" if there else "add dataset.labels=FILE.csv"
        raise ConfigError(f"dataset.labels: expected {path}, got {error.strerror or error}; {fix}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(
            f"dataset.labels: expected a CSV file in UTF-8, got {path} ({one_line(error)}); save it as that"
        ) from error
    _check_splits(dataset, path, rows)
    classes = sorted({row.label for row in rows if row.split in ("", "train")})
    if len(classes) < 2:
        raise ConfigError(f"{path}: expected training images of two or more labels, got {some(classes) or 'none'}")
    if unknown := sorted({row.label for row in rows} - set(classes)):
        raise ConfigError(
            f"{path}: expected labels that training images have, got {some([repr(label) for label in unknown])}; move "
            f"some of their images to train, or remove them"
        )
    return LabelTable(path, rows, tuple(classes))


def _rows(file: TextIO, path: Path) -> Iterator[Row]:
    """The rows below the header; raises `ConfigError` for one that is wrong, or an image that was there before."""
    reader = csv.reader(file, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    if any(header.count(name) != 1 for name in COLUMNS[:2]) or header.count(COLUMNS[2]) > 1:
        raise ConfigError(
            f"{path}: expected a first line that names the columns, path,label or path,label,split, got "
            f"{','.join(header)[:80]!r}"
        )
    first: dict[str, int] = {}
    for values in reader:
        line = reader.line_num
        if not any(map(str.strip, values)):
            continue
        found = dict(zip(header, values, strict=False))
        name, label = PurePath(found.get("path", "")), unicodedata.normalize("NFC", found.get("label", "").strip())
        if name == PurePath() or not label:
            raise ConfigError(f"{path}, line {line}: expected a path and a label, got {','.join(values)[:80]!r}")
        if name.is_absolute() or ".." in name.parts:
            raise ConfigError(f"{path}, line {line}: expected a path below dataset.root, got {str(name)!r}")
        split = found.get("split", "").strip()
        if "split" in header and split.lower() not in SPLITS:
            raise ConfigError(f"{path}, line {line}: expected the split train, val or test, got {split!r}")
        if (before := first.setdefault(composed(str(name)), line)) != line:
            raise ConfigError(f"{path}, line {line}: expected each path once, got {str(name)!r} as in line {before}")
        yield Row(line, name.as_posix(), label, SPLITS[split.lower()] if split else "")


def _check_splits(dataset: ImageFolderConfig, path: Path, rows: tuple[Row, ...]) -> None:
    """Raise `ConfigError` where a table's splits do not suffice, or contradict what else holds images out."""
    if not rows:
        raise ConfigError(f"{path}: expected a line for each image, got none below the first line")
    if not rows[0].split:
        if dataset.val_size and dataset.val_fraction:
            raise ConfigError(
                f"dataset.val_size={dataset.val_size} and dataset.val_fraction={dataset.val_fraction:g} contradict "
                f"each other: give one"
            )
        return
    named = Counter(row.split for row in rows)
    if not named["train"] or len(named) < 2:
        raise ConfigError(
            f"{path}: expected the splits train and test (or val), got {' and '.join(sorted(named))} alone; without "
            f"the column split, images are split by a hash of their paths"
        )
    if dataset.val_fraction:
        raise ConfigError(
            f"dataset.val_fraction: expected 0 where {path.name} has splits, got {dataset.val_fraction:g}; hold "
            f"training images out with dataset.val_size=NUMBER"
        )
    if len(named) == len(set(SPLITS.values())) and dataset.val_size:
        raise ConfigError(f"dataset.val_size: expected 0 where {path.name} has val and test, got {dataset.val_size}")


def labelled_images(table: LabelTable, root: Path, left_out: Counter[str]) -> tuple[ImageFiles, list[str]]:
    """The images of all splits, sorted by class and path, and the split of each one (empty where there is none).

    Formats that are not read are counted in ``left_out``. Raises `ConfigError` where files are missing.
    """
    found: list[tuple[int, str, Row]] = []  # class, name on this disk
    missing: list[str] = []
    for row in table.rows:
        name = _on_disk(root, row.name)
        if name is None:
            missing.append(f"{row.name} (line {row.line})")
        elif ending(name) in image_endings():
            found.append((table.classes.index(row.label), name, row))
        else:
            left_out[ending(name) or "no ending"] += 1
    if missing:
        raise ConfigError(
            f"{table.path}: expected paths of files, relative to {root}, got {some(missing)}; see to the table, or "
            f"name the folder of the images with dataset.root=FOLDER"
        )
    found.sort(key=lambda image: (image[0], composed(image[1])))
    named = {row.split for row in table.rows}
    splits = ["test" if row.split == "val" and "test" not in named else row.split for _, _, row in found]
    labels = np.array([label for label, _, _ in found], dtype=np.int64)
    return ImageFiles(root, tuple(name for _, name, _ in found), labels, is_root=True), splits


def _on_disk(root: Path, name: str) -> str | None:
    """``name`` as this disk has it: an é that was copied from a Mac may be two characters there, or in the table."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((form for form in forms if (root / form).is_file()), None)
