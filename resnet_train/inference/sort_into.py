"""Images into one folder a class: copied, linked or moved, never over a file that is there. Without torch."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from resnet_train.errors import ConfigError, RunError

# Names that Windows keeps for devices, with whatever ending.
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}
LONGEST = 60  # characters of a folder name, up to four bytes each of the 255 that file systems allow


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder's name for each class, good on every system and different from all others, whatever the case.

    ``T-shirt/top`` becomes ``T-shirt_top``.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for label in classes:
        name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', "_", unicodedata.normalize("NFC", label))[:LONGEST]
        name = re.sub(r"^\.|[. ]$", "_", name) or "_"
        if name.partition(".")[0].upper() in DEVICES:
            name = f"_{name}"
        name = next(one for one in _numbered(name, "") if one.casefold() not in taken)
        taken.add(name.casefold())
        names[label] = name
    return names


class Sorter:
    """Puts images into folders below one, by their class."""

    def __init__(self, folder: Path, *, how: str) -> None:
        """``how``: copy, link (a second name of the same file), or move. Raises `ConfigError`."""
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--sort-into: expected a folder, got {folder}, which is a file")
        self.folder = folder
        self.put: Callable[[str, Path], None] = {"copy": copy, "link": link, "move": move}[how]
        self.may_be_there = how != "move"  # the same file, from an earlier time
        self.how = how

    def __call__(self, path: str, folder: str) -> Path:
        """Where the image at ``path`` lies now; raises `RunError` where it cannot be put into ``folder``."""
        into = self.folder / folder
        try:
            into.mkdir(parents=True, exist_ok=True)
            stem, ending = os.path.splitext(os.path.basename(path))
            for name in _numbered(stem, ending):
                target = into / name
                try:
                    self.put(path, target)
                except FileExistsError:
                    if self.may_be_there and filecmp.cmp(path, target, shallow=False):
                        return target
                    continue
                return target
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(f"{path}: cannot {self.how} it into {into}: {reason}") from error
        raise AssertionError("numbers do not end")


def _numbered(stem: str, ending: str) -> Iterator[str]:
    """``a.png``, ``a-2.png``, ``a-3.png``, ..."""
    yield f"{stem}{ending}"
    yield from (f"{stem}-{number}{ending}" for number in count(2))


def copy(source: str, target: Path) -> None:
    """Copy a file and its times; raises ``OSError``: ``FileExistsError`` where ``target`` is there."""
    with open(source, "rb") as reading, open(target, "xb") as writing:
        try:
            shutil.copyfileobj(reading, writing)
            writing.flush()
        except BaseException:  # a full disk, Ctrl-C: half an image is none
            writing.close()
            target.unlink()
            raise
    shutil.copystat(source, target)


def link(source: str, target: Path) -> None:
    """Give a file a second name; raises as `copy` does, and on another file system or one without links."""
    os.link(os.path.realpath(source), target)


def move(source: str, target: Path) -> None:
    """Move a file, of a link what it points to stays; raises as `copy` does."""
    try:
        link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        copy(source, target)
    os.unlink(source)
