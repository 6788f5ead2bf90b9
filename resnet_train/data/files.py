"""What the readers of data files share: what they return, and how trouble with files is reported. Without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_train.config.paths import expanded
from resnet_train.errors import ConfigError
from resnet_train.runs.data_identity import DataIdentity
from resnet_train.runs.lock import hold


@dataclass(frozen=True)
class Images:
    """Decoded images of one split."""

    images: NDArray[np.uint8]  # (N, H, W, C), grey or RGB; may be a memory map, which cannot be written to
    labels: NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class ImageFiles:
    """The image files of one split, not read yet, sorted by class and path."""

    folder: Path
    names: tuple[str, ...]  # relative to folder
    labels: NDArray[np.int64]  # (N,)
    is_root: bool = False  # folder is dataset.root itself

    def paths(self) -> tuple[str, ...]:
        """Relative to dataset.root: ``train/cats/1.png``."""
        return self.names if self.is_root else tuple(f"{self.folder.name}/{name}" for name in self.names)


@dataclass(frozen=True)
class Files:
    """A data set as its files hold it."""

    train: Images
    test: Images
    classes: tuple[str, ...]  # names, in label order
    identity: DataIdentity
    names: tuple[str, ...] = ()  # of the training images, where they have any, as they are compared
    train_paths: tuple[str, ...] = ()  # below dataset.root, where each image is a file
    test_paths: tuple[str, ...] = ()
    left_out: str = ""  # files beside the images, in words
    val: Images | None = None  # where the data set has validation images of its own
    val_paths: tuple[str, ...] = ()
    taken: str = ""  # which images serve as what, in words, where the files do not say it by themselves


def folder_of(root: str | None) -> Path:
    """``dataset.root`` as an absolute path: messages name it, and ``data`` alone does not say where."""
    assert root, "the configuration refuses a data set without root"
    return expanded("dataset.root", root).absolute()


@contextmanager
def one_line_errors(root: Path) -> Iterator[None]:
    """Turn what the file system refuses (permissions, a full disk) into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ConfigError(
            f"dataset.root: expected to read and write files in {root}, got {error.strerror or error}{where}; "
            f"see to its permissions and free space, or add dataset.root=FOLDER"
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out until the block ends, by the lock file ``path``, which stays; waits for them."""
    with hold(path, wait=True):
        yield


def one_line(error: object) -> str:
    """The text of a foreign error without its line breaks, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def md5_of(path: Path) -> str:
    """MD5 of a file; half a second for CIFAR's archive of 170 MB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
