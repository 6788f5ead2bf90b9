"""Files that were published once and for all: found on the disk, or brought from a mirror. Without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_train.config.dataset import PublishedConfig
from resnet_train.data.download import MirrorError, fetch_from_mirrors
from resnet_train.data.files import folder_of, locked
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import replace

TIMEOUT_SECONDS = 30.0  # without a byte


@dataclass(frozen=True)
class PublishedFile:
    """One file of a data set."""

    title: str  # of the data set
    name: str
    md5: str
    folder: str = ""  # below dataset.root, where a download goes and where it is looked for first


@dataclass(frozen=True)
class Source:
    """Where files are looked for, and where they can be had."""

    root: Path
    download: bool
    mirrors: Sequence[str]
    others: tuple[Path, ...] = ()  # folders that are looked into besides
    timeout_seconds: float = TIMEOUT_SECONDS


def source_of(
    dataset: PublishedConfig, *, others: tuple[Path, ...] = (), timeout_seconds: float = TIMEOUT_SECONDS
) -> Source:
    """What the configuration says of it."""
    return Source(folder_of(dataset.root), dataset.download, dataset.mirrors, others, timeout_seconds)


def locate_file(file: PublishedFile, source: Source, *, also: Sequence[str] = ()) -> Path | None:
    """The file on the disk, or one of the names ``also``, which are as good; None where there is none."""
    folders = (source.root / file.folder, source.root, *source.others)
    paths = (folder / name for folder in folders for name in (file.name, *also))
    return next((path for path in paths if path.is_file()), None)


def check_file_obtainable(file: PublishedFile, source: Source, *, also: Sequence[str] = ()) -> None:
    """Raise `ConfigError` where the file is not there and no mirror can be asked; looks at names only."""
    if locate_file(file, source, also=also) or (source.download and source.mirrors):
        return
    got = "none, and no dataset.mirrors to get it from" if source.download else "none"
    raise ConfigError(
        f"dataset.root: expected {file.name} in {source.root}, got {got}; add dataset.download=true, "
        f"{other_ways(file.name)}"
    )


def obtain_file(file: PublishedFile, source: Source, *, also: Sequence[str] = ()) -> Path:
    """The file on the disk, downloaded and verified where it is missing; whoever reads it checks its MD5.

    Processes that come at the same time wait for the first. Raises `ConfigError` where it cannot be had, ``OSError``
    where ``root`` cannot be written.
    """
    check_file_obtainable(file, source, also=also)
    if path := locate_file(file, source, also=also):
        return path
    folder = source.root / file.folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{file.name}.lock"):
        if path := locate_file(file, source, also=also):  # another process was here first
            return path
        part = folder / f"{file.name}.part"
        download_to(part, file, source)
        replace(part, folder / file.name)
    return folder / file.name


def download_to(part: Path, file: PublishedFile, source: Source, *, instead: str = "") -> None:
    """Bring the file, verified, to ``part``; ``instead`` says what would be as good as the file.

    Raises `ConfigError` if no mirror delivers it.
    """
    addresses = [address_of(mirror, file.name) for mirror in source.mirrors]
    try:
        fetch_from_mirrors(addresses, part, file.md5, title=file.title, timeout_seconds=source.timeout_seconds)
    except MirrorError as error:
        again = "run again, the download continues where it stopped" if part.is_file() else "try again later"
        raise ConfigError(
            f"dataset.mirrors: expected {file.name} from one of {len(addresses)}, got {error}; {again}, "
            f"{other_ways(instead or file.name)}"
        ) from error


def address_of(mirror: str, name: str) -> str:
    """Where ``mirror`` has the file: itself, or the file of that name in it where it ends in ``/``."""
    return mirror + name if mirror.endswith("/") else mirror


def other_ways(what: str) -> str:
    """How to do without a download, as the end of a message."""
    return (
        f"or name the folder that holds {what} with dataset.root=FOLDER or the environment variable RESNET_TRAIN_DATA, "
        f"or take dataset=synthetic, which needs no file"
    )


def check_md5(path: Path, expected: str, got: str) -> None:
    """Raise `ConfigError` if a file is not the one that was published."""
    if got != expected:
        raise ConfigError(
            f"{path}: expected MD5 {expected}, got {got}: the file is corrupt; delete it and run again with "
            f"dataset.download=true, or provide it again"
        )


def md5_of_bytes(content: bytes) -> str:
    """MD5 in hexadecimal digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
