"""Images of all kinds become pixels, and broken ones are named."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from resnet_train.data.decode import decode, with_channels
from resnet_train.errors import ConfigError


def test_grey_is_pillows_luma(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    grey = decode(tmp_path / "photo.png", 9, channels=1)
    assert grey.shape == (9, 9, 1)
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    assert np.array_equal(with_channels(with_channels(grey, 3), 1), grey), "three equal channels are grey already"
    many = np.stack([pixels, pixels[::-1]])
    assert np.array_equal(with_channels(many, 1), np.stack([grey, grey[::-1]]))


def checker(value: int = 255) -> np.ndarray:
    """Left half black, right half ``value``: 16 rows, 24 columns; the centre square has columns 4 to 19."""
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:, 12:] = value
    return pixels


def grey16(path: Path) -> None:
    Image.fromarray(checker().astype(np.uint16) * 257 // 2).save(path)


def cmyk(path: Path) -> None:
    Image.fromarray(checker(127)).convert("RGB").convert("CMYK").save(path)


def palette_with_transparency(path: Path) -> None:
    """The left half white, and transparent; the right half opaque."""
    image = Image.fromarray(checker(1))
    image.putpalette([255, 255, 255, 127, 127, 127])
    image.save(path, transparency=b"\x00\xff")


def colour_key(path: Path) -> None:
    """The left half white, which is declared transparent; the right half opaque."""
    pixels = np.where(checker() == 0, 255, 127).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(path, transparency=(255, 255, 255))


def with_alpha(path: Path) -> None:
    """White everywhere; the left half transparent, the right half opaque to 127 of 255."""
    white = Image.new("L", (24, 16), 255)
    Image.merge("LA", (white, Image.fromarray(checker(127)))).save(path)


def with_alpha_rgb(path: Path) -> None:
    white = Image.new("L", (24, 16), 255)
    Image.merge("RGBA", (white, white, white, Image.fromarray(checker(127)))).save(path)


def animated(path: Path) -> None:
    frames = [Image.fromarray(checker(value)) for value in (127, 255, 3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def turned(path: Path) -> None:
    """Stored on its side, with the note that it is to be turned a quarter clockwise."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(checker(127)).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def pgm16(path: Path) -> None:
    path.write_bytes(b"P5 24 16 65535\n" + (checker().astype(np.uint16) * 257 // 2).astype(">u2").tobytes())


def plain(mode: str) -> Any:
    def write(path: Path) -> None:
        Image.fromarray(checker(127)).convert(mode).save(path)

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grey.png", plain("L")),
        ("colour.png", plain("RGB")),
        ("colour.bmp", plain("RGB")),
        ("colour.ppm", plain("RGB")),
        ("colour.jpg", plain("RGB")),
        ("grey.jpeg", plain("L")),
        ("colour.webp", plain("RGB")),
        ("colour.tif", plain("RGB")),
        ("palette.gif", plain("P")),
        ("palette.PNG", plain("P")),
        ("transparent-palette.png", palette_with_transparency),
        ("colour-key.png", colour_key),
        ("grey16.png", grey16),
        ("grey16.tiff", grey16),
        ("grey16.ppm", pgm16),
        ("cmyk.jpg", cmyk),
        ("cmyk.tif", cmyk),
        ("alpha.png", with_alpha),
        ("alpha-colour.png", with_alpha_rgb),
        ("animated.gif", animated),
        ("animated.webp", animated),
        ("animated.png", animated),
        ("turned.jpg", turned),
        ("turned.png", turned),
    ],
)
def test_images_of_all_kinds_become_rgb(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    pixels = decode(tmp_path / name, 16)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (16, 16, 3)
    tolerance = 6 if name.endswith(("jpg", "jpeg", "webp")) else 1
    np.testing.assert_allclose(pixels[:, :6], 0, atol=tolerance)
    np.testing.assert_allclose(pixels[:, -6:], 127, atol=tolerance)


def test_black_and_white_is_full_range(tmp_path: Path) -> None:
    Image.fromarray(checker()).convert("1").save(tmp_path / "one-bit.png")
    pixels = decode(tmp_path / "one-bit.png", 16)
    assert pixels[:, :8].max() == 0
    assert pixels[:, 8:].min() == 255


@pytest.mark.parametrize(("width", "height"), [(64, 16), (16, 64), (5, 3), (1, 1), (1, 3000), (3000, 1)])
def test_the_centre_square_is_scaled(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 8), np.full((8, 8, 3), (10, 20, 30)))


def test_shrinking_averages_over_all_pixels(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    np.testing.assert_allclose(decode(tmp_path / "a.png", 8)[:, 1:-1], 127.5, atol=3)


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "an empty file"),
        ("text.png", b"this is not an image", "something else"),
        ("cut.jpg", saved(NOISE, "JPEG")[:1000], "image file is truncated ..."),
        ("cut.png", saved(NOISE, "PNG")[:1000], "..."),
        ("cut.gif", saved(NOISE, "GIF")[:1000], "..."),
        ("cut.webp", saved(NOISE, "WEBP")[:100], "..."),
        ("cut.tif", saved(NOISE, "TIFF")[:-100], "..."),
        ("short.png", png(8, 8, b"\0" * 20), "..."),
        ("flipped.png", saved(NOISE, "PNG").replace(b"IDAT", b"IDAX"), "..."),
        ("bomb.png", png(50_000, 50_000, b""), "Image size (2500000000 pixels) exceeds limit of ..."),
        ("float.tif", saved(Image.new("F", (8, 8)), "TIFF"), "floating point values, whose range is not known"),
        (
            "deep.tif",
            saved(Image.new("I", (8, 8), 70_000), "TIFF"),
            "integers beyond 16 bits, whose range is not known",
        ),
    ],
)
def test_a_broken_image_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str, exactly: Callable[[str], str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=exactly(f"{path}: expected an image, got {reason}; repair it or remove it")):
        decode(path, 8)


def test_a_folder_with_the_name_of_an_image_is_no_image(tmp_path: Path, exactly: Callable[[str], str]) -> None:
    with pytest.raises(
        ConfigError, match=exactly(f"{tmp_path}: expected an image, got Is a directory; repair it or remove it")
    ):
        decode(tmp_path, 8)
