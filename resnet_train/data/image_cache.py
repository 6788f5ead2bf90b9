"""Images decoded once, into a cache on disk that later runs map into memory. Without torch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resnet_train.data.decode import decode
from resnet_train.data.files import ImageFiles, locked
from resnet_train.errors import ConfigError
from resnet_train.runs.atomic import replace

logger = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when `decode` gives other pixels than before
DECODE_AHEAD = 1024  # images handed to the threads at a time: bounds memory, and the wait after Ctrl-C


def cache_folders(root: Path, cache: str | None) -> list[Path]:
    """Where decoded images may lie, best place first: ``cache``, or beside the images, else the user's own cache.

    Places that several data sets share have a subfolder for each, so that like names, sizes and times do not collide.
    """
    subfolder = f"{root.name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}"
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-train"
    first = Path(cache).expanduser().absolute() / subfolder if cache else root / ".resnet-train-cache"
    return [first, shared / subfolder]


def cached_images(files: ImageFiles, folders: Sequence[Path], *, image_size: int) -> NDArray[np.uint8]:
    """The decoded images ``(N, image_size, image_size, 3)`` as a read-only memory map, decoded now if never before.

    Raises `ConfigError` if an image cannot be read, or none of the folders can be written.
    """
    shape = (len(files.names), image_size, image_size, 3)
    name = f"{files.folder.name}-{fingerprint(files, image_size)}.npy"
    for folder in folders:
        if (images := open_cache(folder / name, shape)) is not None:
            return images
    reasons = []
    for folder in folders:
        try:
            return build_cache(folder / name, files, shape)
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
            logger.warning("decoded images cannot be kept in %s", reasons[-1])
    raise ConfigError(
        f"dataset.cache: expected a folder for the decoded images that can be written, got {', '.join(reasons)}; "
        f"add dataset.cache=FOLDER"
    )


def build_cache(path: Path, files: ImageFiles, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode the images into the cache file ``path`` and map it; processes that come meanwhile wait for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        images = open_cache(path, shape)  # another process may have been here first
        if images is None:
            if path.exists():
                logger.warning("%s is corrupt; decoding the images again", path)
            write_cache(path, files, shape)
            images = np.lib.format.open_memmap(path, mode="r")
    return images


def fingerprint(files: ImageFiles, image_size: int) -> str:
    """Changes whenever an image was added, removed, renamed or written, or is to be decoded in another way."""
    digest = hashlib.sha256(f"{CACHE_VERSION}\0{image_size}\0".encode())
    for name in files.names:
        stat = (files.folder / name).stat()
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


def write_cache(path: Path, files: ImageFiles, shape: tuple[int, ...]) -> None:
    """Decode all images into a .npy file, which appears under its name only when it is complete and on the disk.

    Written in order, so that memory holds a few images and a full disk is an ``OSError`` (through a memory map it
    would be a signal). Raises `ConfigError` if an image cannot be read.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write_header(file, shape)
            for image in decode_all(files, shape[1]):
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())
        replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a .npy file of uint8."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def decode_all(files: ImageFiles, image_size: int) -> Iterator[NDArray[np.uint8]]:
    """Decode in order, on a few threads: Pillow works outside Python's lock."""
    paths = [files.folder / name for name in files.names]
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc=f"decoding {files.folder.name}", unit=" images", disable=None) as bar,
    ):
        for start in range(0, len(paths), DECODE_AHEAD):
            for image in pool.map(lambda path: decode(path, image_size), paths[start : start + DECODE_AHEAD]):
                yield image
                bar.update()
