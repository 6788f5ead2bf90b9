"""Obtain data sets, verify them, and return them as numpy arrays; the only module that reads data files.

CIFAR comes from the official archives, known by their MD5: a folder, an archive or a mirror is as good as another, and
no byte is used that differs from what was published. Pictures of the user's own are decoded once, into a cache. Every
trouble with files ends as a `ConfigError` of one line. This module does not import torch.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import itertools
import logging
import os
import pickle
import re
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resnet_train.config import Cifar10Config, Cifar100Config, CifarConfig, DatasetConfig, ImageFolderConfig
from resnet_train.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Decoded images of one split."""

    images: NDArray[np.uint8]  # (N, H, W, 3); may be a memory map, which cannot be written to
    labels: NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Files:
    """A data set as its files hold it."""

    train: Images
    test: Images
    classes: tuple[str, ...]  # names, in label order


def check_available(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` where the files are missing and nothing can get them; looks at names only."""
    match dataset:
        case CifarConfig():
            root = folder_of(dataset.root)
            with one_line_errors(root):
                check_obtainable(archive_of(dataset), root, mirrors=dataset.mirrors, download=dataset.download)
        case ImageFolderConfig():
            root = folder_of(dataset.root)
            with one_line_errors(root):
                class_names(split_folders(root)[0])


def load_cifar(dataset: CifarConfig, *, timeout_seconds: float = 30.0) -> Files:
    """Read CIFAR, after getting and unpacking it where needed; ``timeout_seconds`` without a byte end a download.

    Images are ``(50_000, 32, 32, 3)`` and ``(10_000, 32, 32, 3)``, in the order of the files. Raises `ConfigError`
    where files are missing, cannot be got, are damaged, or cannot be written.
    """
    archive, root = archive_of(dataset), folder_of(dataset.root)
    with one_line_errors(root):
        folder = obtain(
            archive, root, mirrors=dataset.mirrors, download=dataset.download, timeout_seconds=timeout_seconds
        )
        return read_batches(archive, folder)


def load_imagefolder(dataset: ImageFolderConfig) -> Files:
    """Read ``root/train/<class>/**`` and ``root/val/<class>/**`` (or ``test/``) as squares of ``image_size`` pixels.

    Classes are the folders of ``train/``, sorted; pictures are sorted by class and path. Raises `ConfigError` for
    missing or empty folders, a class that ``train/`` lacks, and pictures that cannot be read.
    """
    root = folder_of(dataset.root)
    with one_line_errors(root):
        folders = split_folders(root)
        classes = class_names(folders[0])
        listed = [list_pictures(folder, classes) for folder in folders]
        caches = cache_folders(root, dataset.cache)
        train, test = (
            Images(cached_images(pictures, caches, image_size=dataset.image_size), pictures.labels)
            for pictures in listed
        )
    return Files(train, test, classes)


def folder_of(root: str | None) -> Path:
    """``dataset.root`` as an absolute path: messages name it, and ``data`` alone does not say where."""
    assert root, "config.py refuses a data set without root"
    return Path(root).expanduser().absolute()


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
    """Keep other processes out until the block ends, by the lock file ``path``, which stays.

    On a platform or file system without locks nobody is kept out; two writers then do the same work twice.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s); start one process at a time", path, error.strerror)
        yield


# ---------------------------------------------------------------------------------------------------------------- CIFAR


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
    """How to go on without a download, as the end of a message."""
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
        fetch_archive(archive, part, mirrors, timeout_seconds=timeout_seconds)
        folder = unpack(archive, part, root)
        part.unlink()
        return folder


def unpack(archive: Archive, path: Path, root: Path) -> Path:
    """Unpack the files that are read into their folder under ``root``, and return it.

    They are unpacked aside, under names from `Archive.files` and never from the archive, and each is moved into its
    place when all are whole. Raises `ConfigError` for a member that lies outside the folder or is not a plain file.
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
            Path(aside, name).replace(folder / name)
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


def md5_of(path: Path) -> str:
    """MD5 of a file; half a second for CIFAR's archive of 170 MB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_md5(path: Path, expected: str, got: str) -> None:
    """Raise `ConfigError` if a file is not the one that was published."""
    if got != expected:
        raise ConfigError(
            f"{path}: expected MD5 {expected}, got {got}: the file is damaged; delete it and run again with "
            f"dataset.download=true, or provide it again"
        )


def read_batches(archive: Archive, folder: Path) -> Files:
    """Read all files of an unpacked archive; raises `ConfigError` for the first that is damaged."""
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
    return Files(train, test, classes=tuple(name.decode() for name in names))


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


# ------------------------------------------------------------------------------------------------------------- download

CHUNK = 1 << 16  # bytes read at most at a time: the progress bar moves, and CIFAR's 170 MB are 2,600 reads


class MirrorError(Exception):
    """A mirror did not deliver; the message says why, shortly."""


def fetch_archive(archive: Archive, part: Path, mirrors: Sequence[str], *, timeout_seconds: float) -> None:
    """Bring the archive, verified, to ``part`` from the first mirror that delivers it.

    What an earlier mirror or run left in ``part`` is continued: the MD5 at the end proves that all mirrors sent pieces
    of the same file. Raises `ConfigError` if no mirror delivers.
    """
    if part.is_file() and md5_of(part) == archive.md5:
        return
    reasons = []
    for url in mirrors:
        logger.info("downloading %s from %s", archive.title, url)
        try:
            fetch_verified(url, part, archive.md5, timeout_seconds=timeout_seconds)
            return
        except MirrorError as error:
            logger.warning("no %s from %s: %s", archive.title, url, error)
            reasons.append(f"{url}: {error}")
    again = "; run again, the download goes on where it stopped, " if part.is_file() else "; try again later, "
    raise ConfigError(
        f"dataset.mirrors: expected {archive.filename} from one of {len(mirrors)}, got {'; '.join(reasons)}"
        + again
        + other_ways(archive)
    )


def fetch_verified(url: str, part: Path, md5: str, *, timeout_seconds: float) -> None:
    """Bring ``url`` to ``part`` and check it; raises `MirrorError`, and removes ``part`` if all came and is wrong."""
    continued = fetch(url, part, timeout_seconds=timeout_seconds)
    got = md5_of(part)
    if got == md5:
        return
    part.unlink()
    if not continued:
        raise MirrorError(f"another file (expected MD5 {md5}, got {got})")
    # Perhaps only the bytes that lay there before are wrong: once more, from the start.
    fetch_verified(url, part, md5, timeout_seconds=timeout_seconds)


def fetch(url: str, part: Path, *, timeout_seconds: float) -> bool:
    """Bring ``url`` to ``part``, continuing what lies there; return whether it was continued.

    Raises `MirrorError` if the server refuses or breaks off, in which case ``part`` keeps what came.
    """
    offset = part.stat().st_size if part.is_file() else 0
    with request(url, offset, timeout_seconds=timeout_seconds) as response:
        start = first_byte(response)
        if start in (0, offset):
            if response.headers.get_content_type() == "text/html":  # before it overwrites what lies there
                raise MirrorError("a web page")
            save(response, part, start, timeout_seconds=timeout_seconds)
            return start > 0
    if offset == 0:
        raise MirrorError("a piece from the middle")
    part.unlink()  # longer than the file on the server, or the server sent another piece: from the start
    return fetch(url, part, timeout_seconds=timeout_seconds)


def first_byte(response: Any) -> int:
    """Position in the file of the first byte of the body; -1 if it is none of the file's."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else -1
    # 200: a server that does not know ranges sends the whole file. A file:// address has no status.
    return -1 if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE else 0


def request(url: str, offset: int, *, timeout_seconds: float) -> Any:
    """Ask for ``url`` from byte ``offset`` on, and return the response; 416, nothing from there on, is an answer too.

    Raises `MirrorError` for any other refusal, and where nobody answers.
    """
    headers = {"User-Agent": "resnet-train"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        if urlsplit(url).scheme not in ("http", "https", "file"):
            raise MirrorError("not an address that begins with http, https or file")
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return error
        error.close()
        raise MirrorError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(reason(error, timeout_seconds)) from error


def save(response: Any, part: Path, start: int, *, timeout_seconds: float) -> None:
    """Write the body to ``part`` from byte ``start`` on, under a progress bar; raises `MirrorError` if it is cut short.

    An ``OSError`` of the disk passes through: it is not the mirror's fault.
    """
    length = response.headers.get("Content-Length") or ""
    total = start + int(length) if length.isdecimal() else None
    received = start
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for chunk in chunks(response, timeout_seconds):
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if total is not None and received < total:
        raise MirrorError(f"broke off after {received} of {total} bytes")


def chunks(response: Any, timeout_seconds: float) -> Iterator[bytes]:
    """The body, as it arrives; raises `MirrorError` when the connection fails."""
    try:
        while chunk := response.read1(CHUNK):  # read would wait for a full chunk, and lose a part of one
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise MirrorError(reason(error, timeout_seconds)) from error


def reason(error: Exception, timeout_seconds: float) -> str:
    """Why the network failed, in a few words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {timeout_seconds:g} s"
    return one_line(cause)


def one_line(error: object) -> str:
    """The text of a foreign error without its line breaks, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------- imagefolder

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Pictures:
    """The picture files of one split, sorted by class and path."""

    folder: Path
    names: tuple[str, ...]  # relative to folder
    labels: NDArray[np.int64]  # (N,)


def split_folders(root: Path) -> tuple[Path, Path]:
    """The folders of the training and the test pictures; raises `ConfigError` if one is missing."""
    train = root / "train"
    test = next((folder for folder in (root / "val", root / "test") if folder.is_dir()), None)
    if train.is_dir() and test:
        return train, test
    got = "neither val/ nor test/" if train.is_dir() else "no train/" if root.is_dir() else "no such folder"
    raise ConfigError(
        f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}; "
        f"add dataset.root=FOLDER"
    )


def class_names(train: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; raises `ConfigError` if there are fewer than two."""
    names = visible_folders(train)
    if len(names) < 2:
        got = names[0] if names else "none"
        raise ConfigError(f"{train}: expected two or more folders, one a class, got {got}; put the pictures into them")
    return tuple(names)


def visible_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``, without hidden ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_pictures(folder: Path, classes: tuple[str, ...]) -> Pictures:
    """All pictures of one split; raises `ConfigError` for a class that is unknown or has none."""
    names: list[str] = []
    labels: list[int] = []
    for class_name in visible_folders(folder):
        if class_name not in classes:
            raise ConfigError(
                f"{folder / class_name}: expected one of the {len(classes)} classes of train/, got {class_name!r}; "
                f"rename or remove the folder, or add the class to train/"
            )
        found = sorted(walk(folder, folder / class_name))
        if not found:
            raise ConfigError(
                f"{folder / class_name}: expected pictures ({', '.join(EXTENSIONS)}), got none; "
                f"add some or remove the folder"
            )
        names += found
        labels += [classes.index(class_name)] * len(found)
    if not names:
        raise ConfigError(f"{folder}: expected one folder a class, as in train/, got none; put the pictures into them")
    return Pictures(folder, tuple(names), np.array(labels, dtype=np.int64))


def walk(folder: Path, top: Path) -> Iterator[str]:
    """Paths, relative to ``folder``, of the pictures anywhere under ``top``; hidden files and folders do not count.

    Links are followed; one that leads back to where it lies is an ``OSError``: its pictures would count many times.
    """

    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over a folder that cannot be read

    for path, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (Path(path, name) for name in folders):
            if link.is_symlink() and Path(path).resolve().is_relative_to(link.resolve()):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(link))
        inside = Path(path).relative_to(folder)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                yield str(inside / name)


# ------------------------------------------------------------------------------------------------ cache of the pictures

CACHE_VERSION = 1  # raise it when `decode` comes to give other pixels


def cache_folders(root: Path, cache: str | None) -> list[Path]:
    """Where decoded pictures may lie, best place first: ``cache``, or beside the pictures, else the user's own cache.

    Places that several data sets share have a subfolder for each, so that like names, sizes and times do not collide.
    """
    subfolder = f"{root.name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}"
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-train"
    first = Path(cache).expanduser().absolute() / subfolder if cache else root / ".resnet-train-cache"
    return [first, shared / subfolder]


def cached_images(pictures: Pictures, folders: Sequence[Path], *, image_size: int) -> NDArray[np.uint8]:
    """The decoded pictures ``(N, image_size, image_size, 3)`` as a read-only memory map, decoded now if never before.

    Raises `ConfigError` if a picture cannot be read, or none of the folders can be written.
    """
    shape = (len(pictures.names), image_size, image_size, 3)
    name = f"{pictures.folder.name}-{fingerprint(pictures, image_size)}.npy"
    for folder in folders:
        if (images := open_cache(folder / name, shape)) is not None:
            return images
    reasons = []
    for folder in folders:
        try:
            return build_cache(folder / name, pictures, shape)
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
            logger.warning("decoded pictures cannot be kept in %s", reasons[-1])
    raise ConfigError(
        f"dataset.cache: expected a folder for the decoded pictures that can be written, got {', '.join(reasons)}; "
        f"add dataset.cache=FOLDER"
    )


def build_cache(path: Path, pictures: Pictures, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode the pictures into the cache file ``path`` and map it; processes that come meanwhile wait for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        images = open_cache(path, shape)  # another process may have been here first
        if images is None:
            if path.exists():
                logger.warning("%s is damaged; decoding the pictures again", path)
            write_cache(path, pictures, shape)
            images = np.lib.format.open_memmap(path, mode="r")
    return images


def fingerprint(pictures: Pictures, image_size: int) -> str:
    """Changes whenever a picture was added, removed, renamed or written, or is to be decoded in another way."""
    digest = hashlib.sha256(f"{CACHE_VERSION}\0{image_size}\0".encode())
    for name in pictures.names:
        stat = (pictures.folder / name).stat()
        digest.update(os.fsencode(name) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def open_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Map a cache file into memory; None if it is missing, cut short, or anything else than uint8 ``shape``."""
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    fits = images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous
    return images if fits else None


def write_cache(path: Path, pictures: Pictures, shape: tuple[int, ...]) -> None:
    """Decode all pictures into a .npy file, which appears under its name only when it is whole and on the disk.

    Written in order, so that memory holds a few pictures and a full disk is an ``OSError`` (through a memory map it
    would be a signal). Raises `ConfigError` if a picture cannot be read.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write_header(file, shape)
            for image in decode_all(pictures, shape[1]):
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a .npy file of uint8."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


# ------------------------------------------------------------------------------------------------------------- decoding

DECODE_AHEAD = 1024  # pictures handed to the threads at a time: bounds memory, and the wait after Ctrl-C


def decode_all(pictures: Pictures, image_size: int) -> Iterator[NDArray[np.uint8]]:
    """Decode in order, on a few threads: Pillow works outside Python's lock."""
    paths = [pictures.folder / name for name in pictures.names]
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc=f"decoding {pictures.folder.name}", unit=" pictures", disable=None) as bar,
    ):
        for start in range(0, len(paths), DECODE_AHEAD):
            for image in pool.map(lambda path: decode(path, image_size), paths[start : start + DECODE_AHEAD]):
                yield image
                bar.update()


def decode(path: Path, image_size: int) -> NDArray[np.uint8]:
    """Read a picture as ``(image_size, image_size, 3)``: upright, the largest square of its centre, scaled.

    Bicubic, averaging over all pixels where it shrinks. Of an animation the first frame counts. Raises `ConfigError`
    for whatever is not a whole picture, or is suspiciously large (Pillow's limit: 179 million pixels).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            # The square is cut out before it is scaled: the same pixels, and a strip of 1 x 10,000 stays small.
            square = ImageOps.fit(to_rgb(upright), (image_size, image_size), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders of damaged files raise nearly anything, from SyntaxError to struct.error
        raise ConfigError(
            f"{path}: expected a picture, got {unreadable(path, error)}; repair it or remove it"
        ) from error
    return np.asarray(square, dtype=np.uint8)


def unreadable(path: Path, error: Exception) -> str:
    """Why a picture could not be read."""
    from PIL import UnidentifiedImageError

    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.stat().st_size == 0:
        return "an empty file"
    return "something else" if isinstance(error, UnidentifiedImageError) else one_line(error)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert from any mode that has a known range of values.

    What is transparent is laid on black: the colours beneath are arbitrary. 16-bit greys are scaled; Pillow's own
    conversion would clip them at 255. Raises ``ValueError`` for integers beyond 16 bits and for floating point.
    """
    from PIL import Image

    if picture.mode.startswith("I"):  # I;16, I;16B, ...; I in a PGM of 16 bits
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("integers beyond 16 bits, whose range is not known")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 = 255 * 257; rounded
    if picture.mode == "F":
        raise ValueError("floating point values, whose range is not known")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return picture.convert("RGB")
