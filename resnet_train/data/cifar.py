"""CIFAR from the official archives: unpacked, verified by MD5 and read as arrays. Without torch.

A folder, an archive or a mirror is as good as another, and no byte is used that differs from what was published.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from resnet_train.config.dataset import Cifar10Config, Cifar100Config, CifarConfig
from resnet_train.data.download import MirrorError, fetch_from_mirrors
from resnet_train.data.files import Files, Images, folder_of, locked, md5_of, one_line_errors
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import replace
from resnet_train.runs.data_identity import identify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A data set as it was published: a .tar.gz of pickled batches, and the MD5 of all that is read from it."""

    title: str
    filename: str
    md5: str
    folder: str  # the one that the archive holds
    train: dict[str, str]  # file to MD5, in the order of the images
    test: dict[str, str]
    meta: dict[str, str]
    label_key: bytes
    classes_key: bytes

    @property
    def files(self) -> dict[str, str]:
        """All files that are read, with their MD5."""
        return self.train | self.test | self.meta


# The sums of the archives stand on https://www.cs.toronto.edu/~kriz/cifar.html, those of the files in torchvision
# 0.29, datasets/cifar.py.
CIFAR10 = Archive(
    title="CIFAR-10",
    filename="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    label_key=b"labels",
    classes_key=b"label_names",
)
CIFAR100 = Archive(
    title="CIFAR-100",
    filename="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    label_key=b"fine_labels",
    classes_key=b"fine_label_names",
)


def load_cifar(dataset: CifarConfig, *, timeout_seconds: float = 30.0) -> Files:
    """Read CIFAR, after getting and unpacking it where needed; ``timeout_seconds`` without a byte end a download.

    Images are ``(50_000, 32, 32, 3)`` and ``(10_000, 32, 32, 3)``, in the order of the files. Raises `ConfigError`
    where files are missing, cannot be downloaded, are corrupt, or cannot be written.
    """
    archive, root = archive_of(dataset), folder_of(dataset.root)
    with one_line_errors(root):
        folder = obtain(
            archive, root, mirrors=dataset.mirrors, download=dataset.download, timeout_seconds=timeout_seconds
        )
        return read_batches(archive, folder)


def archive_of(dataset: CifarConfig) -> Archive:
    """What was published under the name that the configuration asks for."""
    match dataset:
        case Cifar10Config():
            return CIFAR10
        case Cifar100Config():
            return CIFAR100
    raise AssertionError(f"no archive for {type(dataset).__name__}")


def locate(archive: Archive, root: Path) -> Path | None:
    """The folder with all files of the data set, in ``root`` or ``root`` itself; None if there is none."""
    for folder in (root / archive.folder, root):
        if all((folder / name).is_file() for name in archive.files):
            return folder
    return None


def check_obtainable(archive: Archive, root: Path, *, mirrors: Sequence[str], download: bool) -> None:
    """Raise `ConfigError` if there is neither folder nor archive, and no mirror to ask."""
    if locate(archive, root) or (root / archive.filename).is_file() or (download and mirrors):
        return
    folder = root / archive.folder
    absent = next((name for name in archive.files if not (folder / name).is_file()), None)
    got = f"{archive.folder}/ without {absent}" if folder.is_dir() else "neither"
    if download:
        got += ", and no dataset.mirrors to get it from"
    raise ConfigError(
        f"dataset.root: expected {archive.folder}/ or {archive.filename} in {root}, got {got}; "
        f"add dataset.download=true, {other_ways(archive)}"
    )


def other_ways(archive: Archive) -> str:
    """How to do without a download, as the end of a message."""
    return (
        f"or name the folder that holds {archive.folder}/ or {archive.filename} with dataset.root=FOLDER or the "
        f"environment variable RESNET_TRAIN_DATA, or take dataset=synthetic, which needs no file"
    )


def obtain(
    archive: Archive, root: Path, *, mirrors: Sequence[str], download: bool, timeout_seconds: float = 30.0
) -> Path:
    """Return the folder that holds all files of the data set, unpacking or downloading the archive where needed.

    An archive that lies in ``root`` stays there; one that was downloaded is removed once it is unpacked. Processes that
    come at the same time wait for the first. Raises `ConfigError` where the data cannot be had, ``OSError`` where
    ``root`` cannot be written.
    """
    check_obtainable(archive, root, mirrors=mirrors, download=download)
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
        download_archive(archive, part, mirrors, timeout_seconds=timeout_seconds)
        folder = unpack(archive, part, root)
        part.unlink()
        return folder


def download_archive(archive: Archive, part: Path, mirrors: Sequence[str], *, timeout_seconds: float) -> None:
    """Bring the archive, verified, to ``part``; raises `ConfigError` if no mirror delivers it."""
    try:
        fetch_from_mirrors(mirrors, part, archive.md5, title=archive.title, timeout_seconds=timeout_seconds)
    except MirrorError as error:
        again = "run again, the download continues where it stopped" if part.is_file() else "try again later"
        raise ConfigError(
            f"dataset.mirrors: expected {archive.filename} from one of {len(mirrors)}, got {error}; {again}, "
            f"{other_ways(archive)}"
        ) from error


def unpack(archive: Archive, path: Path, root: Path) -> Path:
    """Unpack the files that are read into their folder under ``root``, and return it.

    They are unpacked aside, under names from `Archive.files` and never from the archive, and each is moved into its
    place when all are complete. Raises `ConfigError` for a member that lies outside the folder or is not a plain file.
    """
    folder = root / archive.folder
    logger.info("unpacking %s to %s", archive.filename, folder)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{archive.folder}-") as aside, tarfile.open(path) as tar:
        for member in tar:
            name = wanted_name(archive, path, member)
            if name is None:
                continue
            source = tar.extractfile(member)
            assert source is not None  # a regular file
            with source, Path(aside, name).open("wb") as target:
                shutil.copyfileobj(source, target)
        folder.mkdir(exist_ok=True)
        for name in archive.files:
            replace(Path(aside, name), folder / name)
    return folder


def wanted_name(archive: Archive, path: Path, member: tarfile.TarInfo) -> str | None:
    """Which of the files ``member`` is, or None if it is none of them (a read-me, the folder itself)."""
    parts = PurePosixPath(member.name).parts
    inside = parts[:1] == (archive.folder,) and ".." not in parts
    name = parts[1] if len(parts) == 2 and parts[1] in archive.files else None
    if not inside or (name and not member.isreg()):
        raise ConfigError(
            f"{path}: expected plain files in {archive.folder}/, got the member {member.name!r}; delete the archive "
            f"and run again with dataset.download=true, or provide it again"
        )
    return name


def check_md5(path: Path, expected: str, got: str) -> None:
    """Raise `ConfigError` if a file is not the one that was published."""
    if got != expected:
        raise ConfigError(
            f"{path}: expected MD5 {expected}, got {got}: the file is corrupt; delete it and run again with "
            f"dataset.download=true, or provide it again"
        )


def read_batches(archive: Archive, folder: Path) -> Files:
    """Read all files of an unpacked archive; raises `ConfigError` for the first that is corrupt."""
    with ThreadPoolExecutor() as pool:  # digests and copies of whole files let other threads run
        train, test = (
            join_batches(
                list(pool.map(lambda name, md5: read_verified(folder / name, md5), files, files.values())),
                archive.label_key,
                pool,
            )
            for files in (archive.train, archive.test)
        )
    ((meta_name, meta_md5),) = archive.meta.items()
    names = read_verified(folder / meta_name, meta_md5)[archive.classes_key]
    classes = tuple(name.decode() for name in names)
    images = {"train": len(train.labels), "test": len(test.labels)}
    published = " ".join(archive.files.values())  # every byte was compared with them
    return Files(train, test, classes, identity=identify(classes, images, published))


def join_batches(batches: list[dict[bytes, Any]], label_key: bytes, pool: ThreadPoolExecutor) -> Images:
    """Join batches of ``data`` uint8 ``(N, 3072)``, planes of red, green and blue one after the other, and labels."""
    planes = [batch[b"data"].reshape(-1, 3, 32, 32) for batch in batches]  # (N, 3, 32, 32)
    ends = list(itertools.accumulate(map(len, planes)))
    images = np.empty((ends[-1], 32, 32, 3), np.uint8)
    parts = np.split(images, ends[:-1])
    list(pool.map(lambda part, one: np.copyto(part, one.transpose(0, 2, 3, 1)), parts, planes))
    return Images(images, np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for batch in batches]))


def read_verified(path: Path, md5: str) -> dict[bytes, Any]:
    """Unpickle the very bytes whose MD5 was checked; raises `ConfigError` if they are not what was published."""
    content = path.read_bytes()
    check_md5(path, md5, hashlib.md5(content, usedforsecurity=False).hexdigest())
    try:
        batch: dict[bytes, Any] = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: expected arrays and lists, got {error}; delete it and get it from the data set's own page"
        ) from error
    return batch


# numpy renamed numpy.core to numpy._core in 2.0; a pickle names the module of the numpy that wrote it. Asking an array
# how it is rebuilt gives the function without naming either.
RECONSTRUCT = np.empty(0, np.uint8).__reduce__()[0]
ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values, and runs nothing: a pickle can otherwise call any function by its name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the four names that the files use; raises ``UnpicklingError`` for any other."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"a call of {module}.{name}")
        return ADMITTED[module, name]
