"""Which folders and files are the user's own images, by their names. Without torch."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePath

from resnet_train.data.decode import image_endings

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


def some(texts: list[str]) -> str:
    """The first of ``texts``, and how many more there are."""
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


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


def composed(name: str) -> str:
    """``name`` in the form in which names are compared: NFC, with ``/`` between folders."""
    return unicodedata.normalize("NFC", PurePath(name).as_posix())


def ending(name: str) -> str:
    """``.jpg`` for ``photo.JPG``."""
    return PurePath(name).suffix.lower()
