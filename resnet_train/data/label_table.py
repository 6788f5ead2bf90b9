"""Labels of the user's own images from a CSV file, where no folders say them. Without torch."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.config.paths import expanded
from resnet_train.data.decode import image_endings
from resnet_train.data.files import ImageFiles, one_line
from resnet_train.data.folder_layout import VAL, hashed
from resnet_train.data.folder_names import composed, ending, some
from resnet_train.errors import ConfigError

COLUMNS = ("path", "label", "split")  # the last one may be missing
DELIMITERS = ",;\t"  # Excel writes semicolons where the comma stands in decimals
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # PowerShell and Excel's "Unicode text" begin with it
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
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

    def splits(self) -> tuple[str, ...]:
        """Those of the column split; images of val are the test images where it has no test."""
        named = {row.split for row in self.rows}
        return ("train", "val", "test") if {"val", "test"} <= named else ("train", "test")

    def described(self, dataset: ImageFolderConfig) -> str:
        """Which images serve as what, in words."""
        if not self.has_splits:
            return f"{self.path.name} has no splits: by a hash of each path {hashed(dataset)}"
        if "val" in self.splits():
            return f"of {self.path.name}, val chooses the best checkpoint, test is scored once"
        val = all(row.split != "test" for row in self.rows)
        return f"test images are {'val' if val else 'test'} of {self.path.name}"


def read_labels(dataset: ImageFolderConfig, root: Path) -> LabelTable:
    """The table ``dataset.labels``, a CSV file with the columns path, label and, maybe, split.

    Raises `ConfigError` for a file that cannot be read, rows that are wrong, and classes or splits that are missing.
    """
    assert dataset.labels, "only where there is a table"
    path = expanded("dataset.labels", dataset.labels).absolute()
    try:
        rows = tuple(_rows(_text(path), path, root))
    except OSError as error:
        there = path != root / path.name and (root / path.name).is_file()
        fix = f"add dataset.labels={root / path.name}" if there else "add dataset.labels=FILE.csv"
        raise ConfigError(f"dataset.labels: expected {path}, got {error.strerror or error}; {fix}") from error
    _check_splits(dataset, path, rows)
    classes = sorted({row.label for row in rows if row.split in ("", "train")})
    if len(classes) < 2:
        raise ConfigError(
            f"{path}: expected training images of two or more labels, got {classes[0]!r} alone; add images of another"
        )
    if unknown := sorted({row.label for row in rows} - set(classes)):
        raise ConfigError(
            f"{path}: expected labels that training images have, got {some([repr(label) for label in unknown])}; move "
            f"some of their images to train, or remove them"
        )
    return LabelTable(path, rows, tuple(classes))


def _text(path: Path) -> str:
    """What the file says, without the byte order mark that Excel puts in front; `ConfigError` for other encodings."""
    content = path.read_bytes()
    try:
        return content.decode("utf-16") if content.startswith(UTF_16) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: expected text in UTF-8, got the byte 0x{error.object[error.start]:02x}; save the "
            f"table as CSV in UTF-8 (in Excel: CSV UTF-8)"
        ) from None


def _records(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Values of each record that has some, and the line on which it begins; `ConfigError` where quotes are wrong."""
    first = text.lstrip()[: 1 << 16].partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = [value.strip() for value in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigError(
                f"{path}, line {line}: expected values in CSV, got one that is quoted wrongly ({one_line(error)}); "
                f'write "a, ""b""" for a, "b"'
            ) from None
        if any(values):
            yield line, values


def _rows(text: str, path: Path, root: Path) -> Iterator[Row]:
    """The rows below the header; raises `ConfigError` for one that is wrong, or an image that was there before."""
    records = _records(text, path)
    _, names = next(records, (1, []))
    header = [name.lower() for name in names]
    if any(header.count(name) != 1 for name in COLUMNS[:2]) or header.count(COLUMNS[2]) > 1:
        raise ConfigError(
            f"{path}: expected a first line that names the columns, path,label or path,label,split, got "
            f"{_shown(names)}; add it, or rename the columns"
        )
    first: dict[str, int] = {}
    bases = (root, root.resolve())
    for line, values in records:
        at = f"{path}, line {line}: expected"
        if any(values[len(header) :]):
            raise ConfigError(
                f"{at} {len(header)} values, as the first line has, got {len(values)}, {_shown(values)}; quote a value "
                f'that holds a comma, "a,b"'
            )
        found = dict(zip(header, values, strict=False))
        written, label = found.get("path", ""), unicodedata.normalize("NFC", found.get("label", ""))
        if not written or not label:
            raise ConfigError(f"{at} a path and a label, got {_shown(values)}; fill it in, or remove the line")
        if _CONTROL.search(written + label):
            raise ConfigError(f"{at} a path and a label of one line each, got {_shown(values)}; see to the quotes")
        if (name := _below(written, bases)) is None:
            raise ConfigError(
                f"{at} the path of a file below dataset.root, which is {root}, got {written!r}; write it relative to "
                f"that, or name a folder above with dataset.root=FOLDER"
            )
        split = found.get("split", "")
        if "split" in header and split.lower() not in SPLITS:
            raise ConfigError(
                f"{at} the split train, val or test, got {split!r}; without the column, a hash of the paths splits"
            )
        if (before := first.setdefault(composed(name), line)) != line:
            raise ConfigError(f"{at} each path once, got {name!r} as in line {before}; remove one of them")
        yield Row(line, name, label, SPLITS[split.lower()] if split else "")


def _shown(values: list[str]) -> str:
    """The beginning of a line, for a message."""
    return repr(",".join(values)[:80])


def _below(written: str, bases: tuple[Path, ...]) -> str | None:
    """A path relative to ``dataset.root``, with / between folders, as ``\\`` is read too; None for one elsewhere.

    ``bases``: the root, as it is called and as it is without links. A path in full is taken if it leads below.
    """
    path = PurePosixPath(written.replace("\\", "/"))
    if path.is_absolute() or re.match("[A-Za-z]:/", str(path)):
        full = Path(str(path))
        names = [full.relative_to(base).as_posix() for base in bases if full.is_relative_to(base)]
        path = PurePosixPath(names[0] if names else "..")
    return None if ".." in path.parts or not path.parts else str(path)


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
    missing: list[Row] = []
    labels_of = {name: label for label, name in enumerate(table.classes)}
    for row in table.rows:
        name = _on_disk(root, row.name)
        if name is None:
            missing.append(row)
        elif ending(name) in image_endings():
            found.append((labels_of[row.label], name, row))
        else:
            left_out[ending(name) or "no ending"] += 1
    if missing:
        beside = table.path.parent
        there = beside != root and (beside / missing[0].name).is_file()
        fix = f"add dataset.root={beside}" if there else "name the folder of the images with dataset.root=FOLDER"
        raise ConfigError(
            f"{table.path}: expected paths of files below {root}, got {len(missing):,} of {len(table.rows):,} that are "
            f"not there: {some([f'{row.name} (line {row.line})' for row in missing])}; correct the table, or {fix}"
        )
    found.sort(key=lambda image: (image[0], composed(image[1])))
    wanted = table.splits()
    splits = [row.split if row.split in ("", *wanted) else "test" for _, _, row in found]
    labels = np.array([label for label, _, _ in found], dtype=np.int64)
    return ImageFiles(root, tuple(name for _, name, _ in found), labels, is_root=True), splits


def _on_disk(root: Path, name: str) -> str | None:
    """``name`` as this disk has it: an é that was copied from a Mac may be two characters there, or in the table."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((form for form in forms if (root / form).is_file()), None)
