"""Images are decoded once: the cache, where it lies, and what makes it anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.imagefolder import load_imagefolder
from resnet_train.errors import ConfigError


def cache_file(root: Path, split: str = "train") -> Path:
    (path,) = (root / ".resnet-train-cache").glob(f"{split}-*.npy")
    return path


def test_images_are_decoded_once(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    first = load_imagefolder(imagefolder(root))
    inode = cache_file(root).stat().st_ino
    image = root / "train/red/a.png"
    before = image.stat()
    image.write_bytes(b"x" * before.st_size)  # would fail if it were read again
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load_imagefolder(imagefolder(root))
    assert cache_file(root).stat().st_ino == inode
    assert isinstance(second.train.images, np.memmap)
    assert not second.train.images.flags.writeable
    np.testing.assert_array_equal(first.train.images, second.train.images)


def test_a_changed_image_is_decoded_again(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    load_imagefolder(imagefolder(root))
    Image.new("RGB", (12, 10), (9, 9, 9)).save(root / "train/red/b.bmp")
    os.utime(root / "train/red/b.bmp", ns=(1, 1))
    assert load_imagefolder(imagefolder(root)).train.images[7].max() == 9


def test_each_image_size_has_its_own_cache(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    assert load_imagefolder(imagefolder(root)).train.images.shape == (9, 8, 8, 3)
    assert load_imagefolder(imagefolder(root, image_size=5)).train.images.shape == (9, 5, 5, 3)
    assert len(list((root / ".resnet-train-cache").glob("*.npy"))) == 4


def write_array(array: np.ndarray) -> Any:
    def write(path: Path) -> None:
        np.save(path, array)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 5000),
        write_array(np.zeros((9, 8, 8), np.uint8)),
        write_array(np.zeros((9, 8, 8, 3), np.float32)),
        write_array(np.zeros((9, 8, 8, 3), np.uint8, order="F")),
    ],
    ids=["short", "header", "empty", "zeros", "shape", "dtype", "order"],
)
def test_a_corrupt_cache_is_rebuilt(
    root: Path, caplog: pytest.LogCaptureFixture, damage: Any, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    expected = load_imagefolder(imagefolder(root)).train.images.copy()
    path = cache_file(root)
    damage(path)
    np.testing.assert_array_equal(load_imagefolder(imagefolder(root)).train.images, expected)
    assert caplog.messages == [f"{path} is corrupt; decoding the images again"]
    assert np.load(path).shape == (9, 8, 8, 3)


def test_the_cache_may_lie_elsewhere(root: Path, tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    load_imagefolder(imagefolder(root, cache=tmp_path / "cache"))
    assert not (root / ".resnet-train-cache").exists()
    assert len(list((tmp_path / "cache").glob("photos-*/*.npy"))) == 2


def test_data_sets_that_share_a_cache_stay_apart(
    root: Path, tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    """The same names, sizes and times, but other pixels."""
    other = tmp_path / "other" / "photos"
    for path in root.rglob("*.*"):
        if path.is_file():
            copy = other / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".bmp":
                Image.new("RGB", (12, 10), (7, 7, 7)).save(copy)
            else:
                copy.write_bytes(path.read_bytes())
            os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            assert copy.stat().st_size == path.stat().st_size
    load_imagefolder(imagefolder(root, cache=tmp_path / "cache"))
    images = load_imagefolder(imagefolder(other, cache=tmp_path / "cache")).train.images
    assert images[1].max() == 7


def test_a_cache_that_cannot_be_written_moves_to_the_users_own(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    (root / ".resnet-train-cache").touch()  # a file, where a folder would have to be
    assert load_imagefolder(imagefolder(root)).train.images.shape == (9, 8, 8, 3)
    assert len(list((tmp_path / "xdg/resnet-train").glob("photos-*/*.npy"))) == 2
    assert caplog.messages[0] == f"decoded images cannot be kept in {root}/.resnet-train-cache (File exists)"
    caplog.clear()
    load_imagefolder(imagefolder(root))
    assert caplog.messages == []  # found at once


def test_no_place_for_the_cache_is_one_line(
    root: Path, tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    (tmp_path / "xdg").touch()
    message = (
        f"dataset.cache: expected a folder for the decoded images that can be written, got {tmp_path}/xdg/c/... (Not "
        f"a directory), {tmp_path}/xdg/resnet-train/... (Not a directory); add dataset.cache=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root, cache=tmp_path / "xdg" / "c"))


def test_a_broken_image_leaves_no_cache(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    (root / "train/green/b.bmp").write_bytes(b"")
    message = f"{root}/train/green/b.bmp: expected an image, got an empty file; repair it or remove it"
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))
    assert not list((root / ".resnet-train-cache").glob("train-*"))


def test_all_broken_images_are_named_at_once(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    """Those of both splits; what is too long for a line is listed in a file."""
    broken = ["train/blue/a.png", "train/red/more/c.JPG", "val/green/x.gif"]
    for name in broken:
        (root / name).write_bytes(b"")
    (root / "train/green/link.png").symlink_to("nowhere.png")
    message = (
        f"{root}: expected images, got 4 files that cannot be read: train/blue/a.png (an empty file), "
        f"train/green/link.png (No such file or directory), train/red/more/c.JPG (an empty file), "
        f"val/green/x.gif (an empty file); repair them or remove them"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))
    for number in range(9):
        (root / f"val/blue/{number}.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"got 13 files that cannot .* \(something else\) and 8 more \(listed in "):
        load_imagefolder(imagefolder(root))
    lines = (root / ".resnet-train-cache/unreadable.txt").read_text().splitlines()
    assert len(lines) == 13
    assert lines[-1] == "val/green/x.gif (an empty file)"
    for line in lines:
        (root / line.partition(" (")[0]).unlink()
    Image.new("RGB", (12, 10)).save(root / "val/green/y.png")
    load_imagefolder(imagefolder(root))


def test_the_content_of_a_cache_of_version_0_1_0_is_read_once(
    root: Path, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    first = load_imagefolder(imagefolder(root)).identity
    path = cache_file(root).with_suffix(".sums")
    path.unlink()  # that version kept the pixels only
    assert load_imagefolder(imagefolder(root)).identity == first
    assert path.stat().st_size == 9 * 16
    path.write_bytes(b"cut")
    assert load_imagefolder(imagefolder(root)).identity == first
