"""MNIST and its relatives from their official files, from mirrors, and whatever else lies in their place."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from resnet_train.config.dataset import KMNISTConfig, MNISTConfig
from resnet_train.config.run import Config
from resnet_train.data.available import check_available
from resnet_train.data.dataset import load_dataset
from resnet_train.data.idx import FASHION_MNIST, KMNIST, MNIST, NAMES, IdxFiles, load_idx, read_files
from resnet_train.data.published import Source
from resnet_train.errors import ConfigError
from tests.data.conftest import Mirror

Compose = Callable[..., Config]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """A file of bytes in the format IDX."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def small() -> tuple[IdxFiles, dict[str, bytes], list[np.ndarray]]:
    """Four files like MNIST's, of 6 and 3 images."""
    draws = np.random.default_rng(0)
    arrays = []
    for count in (6, 3):
        arrays += [draws.integers(0, 256, (count, 28, 28), np.uint8), draws.integers(0, 10, count, np.uint8)]
    files = {f"{name}.gz": gzip.compress(idx(array)) for name, array in zip(NAMES, arrays, strict=True)}
    return replace(MNIST, packed=tuple(map(md5, files.values())), unpacked=()), files, arrays


@pytest.mark.slow
def test_the_official_files(compose: Compose, fashion_mnist_root: Path) -> None:
    config = compose("dataset=fashion_mnist", f"dataset.root={fashion_mnist_root}", "dataset.download=false").dataset
    check_available(config)
    files = load_idx(config)
    assert files.train.images.shape == (60_000, 28, 28, 1)
    assert files.test.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(files.train.labels).tolist() == [6000] * 10
    assert files.classes == FASHION_MNIST.classes
    pixels = files.train.images / 255
    assert pixels.mean() == pytest.approx(config.mean[0], abs=1e-4)
    assert pixels.std() == pytest.approx(config.std[0], abs=1e-4)
    assert files.train.labels[:3].tolist() == [9, 0, 0]  # an ankle boot, then two T-shirts


@pytest.mark.slow
def test_three_channels_are_equal(compose: Compose, fashion_mnist_root: Path) -> None:
    root = (f"dataset.root={fashion_mnist_root}", "dataset.download=false", "dataset.train_size=128")
    grey, colour = (
        load_dataset(compose("dataset=fashion_mnist", *root, f"dataset.channels={channels}").dataset, seed=0)
        for channels in (1, 3)
    )
    assert (grey.test.images.shape[3], colour.test.images.shape[3]) == (1, 3)
    assert (colour.train.images == grey.train.images).all()
    assert grey.identity == colour.identity


def test_unpacked_files_are_as_good(compose: Compose, fashion_mnist_root: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(gzip.decompress((fashion_mnist_root / f"{name}.gz").read_bytes()))
    config = compose("dataset=fashion_mnist", f"dataset.root={tmp_path}", "dataset.download=false").dataset
    check_available(config)
    assert len(load_idx(config).test.labels) == 10_000


@pytest.mark.slow
def test_files_that_are_missing_or_corrupt(compose: Compose, fashion_mnist_root: Path, tmp_path: Path) -> None:
    config = compose("dataset=fashion_mnist", f"dataset.root={tmp_path}", "dataset.download=false").dataset
    missing = r"dataset\.root: expected train-images-idx3-ubyte\.gz in .*, got none; add dataset\.download=true, "
    with pytest.raises(ConfigError, match=missing):
        check_available(config)
    for name in NAMES:
        shutil.copy(fashion_mnist_root / f"{name}.gz", tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte\.gz: expected a gzip file, got one that is corrupt"):
        load_idx(config)
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01\0"))
    with pytest.raises(ConfigError, match=r"expected MD5 15d484375f8d13e6eb1aabb0c3f46965 of what it holds, got "):
        load_idx(config)


def test_downloads_are_continued_by_the_next_mirror_and_kept(
    small: tuple[IdxFiles, dict[str, bytes], list[np.ndarray]], mirror: Mirror, tmp_path: Path
) -> None:
    published, mirror.files, arrays = small
    source = Source(tmp_path, True, mirror("missing/", "cut/", "good/"), timeout_seconds=1)
    for _ in range(2):
        files = read_files(published, source)
        for found, images, labels in ((files.train, *arrays[:2]), (files.test, *arrays[2:])):
            assert np.array_equal(found.images, images[..., None])
            assert found.labels.tolist() == labels.tolist()
    first = f"{NAMES[0]}.gz"
    assert [path for path, _ in mirror.requests[:3]] == [f"/missing/{first}", f"/cut/{first}", f"/good/{first}"]
    assert mirror.requests[2][1] == f"bytes={len(mirror.files[first]) // 2}-"
    assert len(mirror.requests) == 12, "the second time nothing is asked for"
    kept = {path.name for path in (tmp_path / "MNIST/raw").iterdir() if path.suffix != ".lock"}
    assert kept == set(mirror.files)


def test_torchvision_reads_the_same(small: tuple[IdxFiles, dict[str, bytes], list[np.ndarray]], tmp_path: Path) -> None:
    published, packed, _ = small
    folder = tmp_path / published.folder
    folder.mkdir(parents=True)
    for name, content in packed.items():
        (folder / name).write_bytes(content)
        (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(content))
    files = read_files(published, Source(tmp_path, False, ()))
    for train, found in ((True, files.train), (False, files.test)):
        theirs = datasets.MNIST(tmp_path, train=train)
        assert np.array_equal(theirs.data.numpy(), found.images[..., 0])
        assert theirs.targets.tolist() == found.labels.tolist()


def test_a_wrong_file_is_refused(
    small: tuple[IdxFiles, dict[str, bytes], list[np.ndarray]], tmp_path: Path, dataset: Callable[..., Any]
) -> None:
    _, packed, _ = small
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    check_available(dataset(MNISTConfig, tmp_path))
    with pytest.raises(ConfigError, match=r"ubyte\.gz: expected MD5 6bbc9ace898e44ae57da46a324031adb of what it "):
        load_idx(dataset(MNISTConfig, tmp_path))
    with pytest.raises(ConfigError, match=r"ubyte\.gz: expected MD5 bdb82020997e1d708af4cf47b453dcf7, got "):
        load_idx(dataset(KMNISTConfig, tmp_path))


@pytest.mark.parametrize(
    ("published", "theirs"),
    [(MNIST, datasets.MNIST), (FASHION_MNIST, datasets.FashionMNIST), (KMNIST, datasets.KMNIST)],
)
def test_the_tables_are_those_of_torchvision(published: IdxFiles, theirs: type[datasets.MNIST]) -> None:
    assert [(file.name, file.md5) for file in published.files()] == theirs.resources
    assert published.folder == f"{theirs.__name__}/raw"
    if published is not MNIST:  # theirs are "0 - zero"
        assert list(published.classes) == theirs.classes


@pytest.mark.slow
def test_mirrors_are_those_of_torchvision(compose: Compose) -> None:
    for name, theirs in (
        ("mnist", datasets.MNIST),
        ("kmnist", datasets.KMNIST),
        ("fashion_mnist", datasets.FashionMNIST),
    ):
        assert set(compose(f"dataset={name}").dataset.mirrors) == set(theirs.mirrors)
