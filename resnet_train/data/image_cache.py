"""Images decoded once, into a cache on disk that later runs map into memory. Without torch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resnet_train.data.files import ImageFiles, locked, one_line
from resnet_train.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

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
        part.replace(path)
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


def decode(path: Path, image_size: int) -> NDArray[np.uint8]:
    """Read an image as ``(image_size, image_size, 3)``: upright, the largest square of its centre, scaled.

    Bicubic, averaging over all pixels where it shrinks. Of an animation the first frame counts. Raises `ConfigError`
    for whatever is not a complete image, or is suspiciously large (Pillow's limit: 179 million pixels).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            # The square is cut out before it is scaled: the same pixels, and a strip of 1 x 10,000 stays small.
            square = ImageOps.fit(to_rgb(upright), (image_size, image_size), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders of corrupt files raise nearly anything, from SyntaxError to struct.error
        raise ConfigError(
            f"{path}: expected an image, got {unreadable(path, error)}; repair it or remove it"
        ) from error
    return np.asarray(square, dtype=np.uint8)


def unreadable(path: Path, error: Exception) -> str:
    """Why an image could not be read."""
    from PIL import UnidentifiedImageError

    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.stat().st_size == 0:
        return "an empty file"
    return "something else" if isinstance(error, UnidentifiedImageError) else one_line(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert from any mode that has a known range of values.

    What is transparent is laid on black: the colours beneath are arbitrary. 16-bit greys are scaled; Pillow's own
    conversion would clip them at 255. Raises ``ValueError`` for integers beyond 16 bits and for floating point.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # I;16, I;16B, ...; I in a PGM of 16 bits
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("integers beyond 16 bits, whose range is not known")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 = 255 * 257; rounded
    if image.mode == "F":
        raise ValueError("floating point values, whose range is not known")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return image.convert("RGB")
