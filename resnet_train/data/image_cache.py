"""Images decoded once, into a cache on disk that later runs map into memory. Without torch."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resnet_train.config.paths import expanded, user_cache
from resnet_train.data.decode import UnreadableImage, decode
from resnet_train.data.files import ImageFiles, locked
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import replace, write_atomically

logger = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when `decode` gives other pixels than before
DECODE_AHEAD = 1024  # images handed to the threads at a time: bounds memory, and the wait after Ctrl-C
SUM_LENGTH = 16  # bytes of a file's SHA-256 that are kept
UNREADABLE_SHOWN = 5  # images that cannot be read, in a message

T = TypeVar("T")


def cache_folders(root: Path, cache: str | None) -> list[Path]:
    """Where decoded images may lie, best place first: ``cache``, or beside the images, else the user's own cache.

    Places that several data sets share have a subfolder for each, so that like names, sizes and times do not collide.
    """
    subfolder = f"{root.name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}"
    first = expanded("dataset.cache", cache).absolute() / subfolder if cache else root / ".resnet-train-cache"
    shared = user_cache()
    return [first] if shared is None else [first, shared / subfolder]


@dataclass(frozen=True)
class Cached:
    """The decoded images of one split."""

    images: NDArray[np.uint8]  # (N, image_size, image_size, 3), a read-only memory map
    sums: NDArray[np.uint8]  # (N, SUM_LENGTH): what the files hold, wherever they lie and whenever they were written


def cached_images(files: ImageFiles, folders: Sequence[Path], *, image_size: int) -> Cached | list[UnreadableImage]:
    """The decoded images, decoded now if never before; or all those that cannot be read.

    Raises `ConfigError` if none of the folders can be written.
    """
    shape = (len(files.names), image_size, image_size, 3)
    name = f"{files.folder.name}-{fingerprint(files, image_size)}.npy"
    for folder in folders:
        if (images := open_cache(folder / name, shape)) is not None:
            return Cached(images, read_sums(folder / name, files))
    reasons = []
    for folder in folders:
        try:
            unreadable = build_cache(folder / name, files, shape)
            if unreadable:
                return unreadable
            images = np.lib.format.open_memmap(folder / name, mode="r")
            return Cached(images, read_sums(folder / name, files))
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
            logger.warning("decoded images cannot be kept in %s", reasons[-1])
    raise ConfigError(
        f"dataset.cache: expected a folder for the decoded images that can be written, got {', '.join(reasons)}; "
        f"add dataset.cache=FOLDER"
    )


def build_cache(path: Path, files: ImageFiles, shape: tuple[int, ...]) -> list[UnreadableImage]:
    """Decode the images into the cache file ``path``; processes that come meanwhile wait for the first.

    Returns the images that cannot be read; where there are any, nothing is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        if open_cache(path, shape) is not None:  # another process was here first
            return []
        if path.exists():
            logger.warning("%s is corrupt; decoding the images again", path)
        return write_cache(path, files, shape)


def report_unreadable(found: Sequence[UnreadableImage], root: Path, cache: Path) -> None:
    """Raise `ConfigError` that names the first of ``found``; a longer list is kept whole, beside the cache."""
    if len(found) == 1:
        raise found[0]
    if not found:
        return
    texts = [f"{one.path.relative_to(root)} ({one.reason})" for one in found]
    shown, more = texts[:UNREADABLE_SHOWN], len(texts) - UNREADABLE_SHOWN
    rest = ""
    if more > 0:
        rest, whole = f" and {more:,} more", cache / "unreadable.txt"
        with contextlib.suppress(OSError):
            whole.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8", errors="backslashreplace")
            rest += f" (listed in {whole})"
    raise ConfigError(
        f"{root}: expected images, got {len(texts):,} files that cannot be read: {', '.join(shown)}{rest}; repair them "
        f"or remove them"
    )


def fingerprint(files: ImageFiles, image_size: int) -> str:
    """Changes whenever an image was added, removed, renamed or written, or is to be decoded in another way."""
    digest = hashlib.sha256(f"{CACHE_VERSION}\0{image_size}\0".encode())
    for name in files.names:
        try:
            stat = (files.folder / name).stat()
        except OSError:  # a link to nowhere: it is named with all others that cannot be read
            continue
        digest.update(os.fsencode(name) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def open_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Map a cache file into memory; None if it is missing, cut short, or anything else than uint8 of ``shape``."""
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    fits = images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous
    return images if fits else None


def write_cache(path: Path, files: ImageFiles, shape: tuple[int, ...]) -> list[UnreadableImage]:
    """Decode all images into a .npy file, which appears under its name only when it is complete and on the disk.

    Written in order, so that memory holds a few images and a full disk is an ``OSError`` (through a memory map it
    would be a signal). Returns the images that cannot be read; where there are any, nothing is kept.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sums: list[bytes] = []
    unreadable: list[UnreadableImage] = []
    try:
        with part.open("wb") as file:
            write_header(file, shape)
            for read in decode_all(files, shape[1]):
                if isinstance(read, UnreadableImage):
                    unreadable.append(read)
                elif not unreadable:
                    sums.append(read[0])
                    file.write(read[1].tobytes())
            file.flush()
            os.fsync(file.fileno())
        if not unreadable:
            write_sums(path, sums)
            replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return unreadable


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a .npy file of uint8."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def decode_all(files: ImageFiles, image_size: int) -> Iterator[tuple[bytes, NDArray[np.uint8]] | UnreadableImage]:
    """Sums and pixels in order, or why there are none, on a few threads: Pillow works outside Python's lock."""

    def read(path: Path) -> tuple[bytes, NDArray[np.uint8]] | UnreadableImage:
        try:
            pixels = decode(path, image_size)
            return sum_of(path), pixels
        except UnreadableImage as error:
            return error

    yield from on_threads(read, files, f"decoding {files.folder.name}")


def on_threads(work: Callable[[Path], T], files: ImageFiles, title: str) -> Iterator[T]:
    """What ``work`` returns for each file, in order, with a bar on the terminal."""
    paths = [files.folder / name for name in files.names]
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc=title, unit=" images", disable=None) as bar,
    ):
        for start in range(0, len(paths), DECODE_AHEAD):
            for result in pool.map(work, paths[start : start + DECODE_AHEAD]):
                yield result
                bar.update()


# -------------------------------------------------------------------------------------------------------------- sums


def sum_of(path: Path) -> bytes:
    """The first bytes of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()[:SUM_LENGTH]


def read_sums(cache: Path, files: ImageFiles) -> NDArray[np.uint8]:
    """The sums that are kept beside a cache file; made now where version 0.1.0 left none."""
    length = len(files.names) * SUM_LENGTH
    try:
        content = cache.with_suffix(".sums").read_bytes()
    except OSError:
        content = b""
    if len(content) != length:
        sums = list(on_threads(sum_of, files, f"reading {files.folder.name}"))
        content = b"".join(sums)
        with contextlib.suppress(OSError):  # a cache that others wrote: made again next time
            write_sums(cache, sums)
    return np.frombuffer(content, np.uint8).reshape(-1, SUM_LENGTH)


def write_sums(cache: Path, sums: Sequence[bytes]) -> None:
    """Keep ``sums`` beside a cache file, atomically."""
    write_atomically(cache.with_suffix(".sums"), b"".join(sums))
