"""Archives of a data set, .tar.gz or .zip: downloaded, verified by MD5 and unpacked. Without torch.

Some hold a few files, each of which is verified again when it is read; others hold a tree of images, which appears
under its name when all of it is there.
"""

from __future__ import annotations

import logging
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from resnet_train.data.files import locked, md5_of
from resnet_train.data.published import PublishedFile, Source, check_md5, download_to, other_ways
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import replace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A data set as it was published, and where its files lie when they are unpacked."""

    title: str
    filename: str
    md5: str
    folder: str  # the one that the archive holds
    train: dict[str, str] = field(default_factory=dict)  # file to MD5, in the order of the images
    test: dict[str, str] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)
    landmarks: tuple[str, ...] = ()  # of a tree of images instead: files and folders by which it is known

    @property
    def files(self) -> dict[str, str]:
        """All files that are read, with their MD5; none of a tree."""
        return self.train | self.test | self.meta

    @property
    def instead(self) -> str:
        """What is as good as a download, in words."""
        return f"{self.folder}/ or {self.filename}"

    @property
    def file(self) -> PublishedFile:
        """The archive itself."""
        return PublishedFile(self.title, self.filename, self.md5)


Member = tuple[str, bool, Callable[[], IO[bytes]]]  # name, whether it is a plain file, its content


def locate(archive: Archive, root: Path) -> Path | None:
    """The folder with all files of the data set, in ``root`` or ``root`` itself; None if there is none."""
    for folder in (root / archive.folder, root):
        if absent(archive, folder) is None:
            return folder
    return None


def absent(archive: Archive, folder: Path) -> str | None:
    """The first file or landmark that is not in ``folder``."""
    if archive.files:
        return next((name for name in archive.files if not (folder / name).is_file()), None)
    return next((name for name in archive.landmarks if not (folder / name).exists()), None)


def check_obtainable(archive: Archive, source: Source) -> None:
    """Raise `ConfigError` if there is neither folder nor archive, and no mirror to ask."""
    root = source.root
    if locate(archive, root) or (root / archive.filename).is_file() or (source.download and source.mirrors):
        return
    folder = root / archive.folder
    got = f"{archive.folder}/ without {absent(archive, folder)}" if folder.is_dir() else "neither"
    if source.download:
        got += ", and no dataset.mirrors to get it from"
    raise ConfigError(
        f"dataset.root: expected {archive.folder}/ or {archive.filename} in {root}, got {got}; "
        f"add dataset.download=true, {other_ways(archive.instead)}"
    )


def obtain(archive: Archive, source: Source) -> Path:
    """Return the folder that holds all files of the data set, unpacking or downloading the archive where needed.

    An archive that lies in ``root`` stays there; one that was downloaded is removed once it is unpacked. Processes that
    come at the same time wait for the first. Raises `ConfigError` where the data cannot be had, ``OSError`` where
    ``root`` cannot be written.
    """
    root = source.root
    check_obtainable(archive, source)
    if folder := locate(archive, root):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"{archive.filename}.lock"):
        if folder := locate(archive, root):  # another process was here first
            return folder
        path = root / archive.filename
        if path.is_file():
            check_md5(path, archive.md5, md5_of(path))
            return unpack(archive, path, root)
        part = root / f"{archive.filename}.part"
        download_to(part, archive.file, source, instead=archive.instead)
        folder = unpack(archive, part, root)
        part.unlink()
        return folder


def unpack(archive: Archive, path: Path, root: Path) -> Path:
    """Unpack what is read into its folder under ``root``, and return it.

    It is unpacked aside, and moved into its place when it is complete. Raises `ConfigError` for a member that lies
    outside the folder or is not a plain file.
    """
    folder = root / archive.folder
    if not archive.files and folder.exists():
        raise ConfigError(
            f"{folder}: expected {archive.title}, got it without {absent(archive, folder)}; move it away, so that it "
            f"can be unpacked again"
        )
    logger.info("unpacking %s to %s", archive.filename, folder)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{archive.folder}-") as aside:
        tree = Path(aside, archive.folder)
        tree.mkdir()
        for member, is_plain, opened in members(path):
            name = wanted_name(archive, path, member, is_plain=is_plain)
            if name is None:
                continue
            place = tree / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, place.open("wb") as target:
                shutil.copyfileobj(source, target)
        if not archive.files:
            tree.rename(folder)
            return folder
        folder.mkdir(exist_ok=True)
        for name in archive.files:
            replace(tree / name, folder / name)
    return folder


def members(path: Path) -> Iterator[Member]:
    """What an archive holds, but its folders."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, True, lambda info=info: archive.open(info)  # type: ignore[misc]
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isdir():

                def opened(member: tarfile.TarInfo = member) -> IO[bytes]:
                    content = tar.extractfile(member)
                    assert content is not None  # a regular file
                    return content

                yield member.name, member.isreg(), opened


def wanted_name(archive: Archive, path: Path, member: str, *, is_plain: bool) -> str | None:
    """Under which name in the folder ``member`` is wanted, or None if it is not (a read-me)."""
    parts = PurePosixPath(member).parts
    inside = parts[:1] == (archive.folder,) and ".." not in parts and "\\" not in member
    name = "/".join(parts[1:])
    wanted = name in archive.files if archive.files else True
    if not inside or (wanted and not is_plain):
        raise ConfigError(
            f"{path}: expected plain files in {archive.folder}/, got the member {member!r}; delete the archive "
            f"and run again with dataset.download=true, or provide it again"
        )
    return name if wanted else None
