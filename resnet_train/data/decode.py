"""Images of any kind as RGB squares of one size. Pillow is imported at the first image, torch never."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_train.data.files import one_line
from resnet_train.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


# What Pillow opens and what is no image: data, documents and films, most of which it only knows by name. It hands EPS
# to Ghostscript, which is a program that runs.
NOT_IMAGES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


class UnreadableImage(ConfigError):
    """A file that is no image, for all its name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: expected an image, got {reason}; repair it or remove it")
        self.path, self.reason = path, reason


@cache
def image_endings() -> frozenset[str]:
    """Endings of the files that this Pillow can read, in lower case: ``.jpg``, ..., and ``.avif`` where it has it."""
    from PIL import Image, features

    unreadable = NOT_IMAGES | (set() if features.check("jpg_2000") else {"JPEG2000"})
    endings = Image.registered_extensions()
    return frozenset(name for name, kind in endings.items() if kind in Image.OPEN and kind not in unreadable)


def decode(path: Path, image_size: int, *, channels: int = 3) -> NDArray[np.uint8]:
    """Read an image as ``(image_size, image_size, channels)``: upright, the largest square of its centre, scaled.

    ``channels``: 3, or 1 for grey. Bicubic, averaging over all pixels where it shrinks. Of an animation the first frame
    counts. Raises `UnreadableImage` for whatever is not a complete image, or is suspiciously large (Pillow's limit: 179
    million pixels).
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return squared(image, image_size, channels=channels)
    except Exception as error:  # decoders of corrupt files raise nearly anything, from SyntaxError to struct.error
        raise UnreadableImage(path, unreadable(path, error)) from error


def squared(image: Image.Image, image_size: int, *, channels: int = 3) -> NDArray[np.uint8]:
    """An open image as `decode` returns it; raises whatever its decoder does.

    What would change nothing is left out: of a small image that is as it should be, the copies are half the time.
    """
    from PIL import ExifTags, Image, ImageOps

    image.load()  # a PNG may have its orientation behind the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    square = to_rgb(image)
    if square.size != (image_size, image_size):
        # The square is cut out before it is scaled: the same pixels, and a strip of 1 x 10,000 stays small.
        square = ImageOps.fit(square, (image_size, image_size), Image.Resampling.BICUBIC)
    return with_channels(np.asarray(square, dtype=np.uint8), channels)


def with_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Images ``(..., C)`` of 1 or 3 channels as ``(..., channels)``.

    Grey becomes three equal channels. Colour becomes its luma, 0.299 red, 0.587 green and 0.114 blue (ITU-R BT.601), by
    the very integers of Pillow's mode L, which gives three equal channels back as they were.
    """
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    grey = np.empty((*images.shape[:-1], 1), np.uint8)
    for part, whole in zip(grey, images, strict=True):  # of one image, or a row: 32-bit copies of all would be large
        part[..., 0] = (whole @ np.array([19595, 38470, 7471], np.uint32) + 0x8000) >> 16
    return grey


def unreadable(path: Path, error: Exception) -> str:
    """Why an image could not be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if path.stat().st_size == 0:
        return "an empty file"
    if path.suffix.lower() in (".heic", ".heif"):
        return "HEIC, which Pillow does not read (convert it to JPEG)"
    return undecodable(error)


def undecodable(error: Exception) -> str:
    """What an image turned out to be, by what its decoder raised."""
    from PIL import UnidentifiedImageError

    return "something else" if isinstance(error, UnidentifiedImageError) else one_line(error)[:200]


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
    return image if image.mode == "RGB" else image.convert("RGB")
