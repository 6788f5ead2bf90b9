"""Fashion-MNIST from the official files, and whatever else lies in their place."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config.run import Config
from resnet_train.data.available import check_available
from resnet_train.data.idx import CLASSES, FILES, load_fashion_mnist
from resnet_train.errors import ConfigError

Compose = Callable[..., Config]


def test_the_official_files(compose: Compose, fashion_mnist_root: Path) -> None:
    config = compose("dataset=fashion_mnist", f"dataset.root={fashion_mnist_root}").dataset
    check_available(config)
    files = load_fashion_mnist(config)
    assert files.train.images.shape == (60_000, 28, 28, 3)
    assert files.test.images.shape == (10_000, 28, 28, 3)
    assert (files.train.images[..., 0] == files.train.images[..., 2]).all()
    assert [int((files.train.labels == label).sum()) for label in range(10)] == [6000] * 10
    assert files.classes == CLASSES
    pixels = files.train.images[..., 0] / 255
    assert pixels.mean() == pytest.approx(config.mean[0], abs=1e-4)
    assert pixels.std() == pytest.approx(config.std[0], abs=1e-4)
    assert files.train.labels[:3].tolist() == [9, 0, 0]  # an ankle boot, then two T-shirts


def test_unpacked_files_are_as_good(compose: Compose, fashion_mnist_root: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(gzip.decompress((fashion_mnist_root / f"{name}.gz").read_bytes()))
    files = load_fashion_mnist(compose("dataset=fashion_mnist", f"dataset.root={tmp_path}").dataset)
    assert len(files.test.labels) == 10_000


def test_files_that_are_missing_or_corrupt(compose: Compose, fashion_mnist_root: Path, tmp_path: Path) -> None:
    config = compose("dataset=fashion_mnist", f"dataset.root={tmp_path}").dataset
    with pytest.raises(ConfigError, match=r"dataset\.root: expected train-images-idx3-ubyte\.gz in .*, got none"):
        check_available(config)
    for name in FILES:
        shutil.copy(fashion_mnist_root / f"{name}.gz", tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte\.gz: expected a gzip file, got one that is corrupt"):
        load_fashion_mnist(config)
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01\0"))
    with pytest.raises(ConfigError, match=r"expected MD5 15d484375f8d13e6eb1aabb0c3f46965 of what it holds, got "):
        load_fashion_mnist(config)
