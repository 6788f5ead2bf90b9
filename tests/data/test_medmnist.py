"""MedMNIST from files in its official format, and its validation split."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_train.config.dataset import MedMNISTConfig, known_num_train
from resnet_train.config.medmnist import SUBSETS, Subset
from resnet_train.data import medmnist
from resnet_train.data.available import check_available, num_classes
from resnet_train.data.dataset import Dataset, load_dataset
from resnet_train.data.medmnist import load_medmnist, read_subset
from resnet_train.data.published import Source
from resnet_train.errors import ConfigError
from tests.data.conftest import Mirror

SIZES = {"train": 12, "val": 5, "test": 4}


def npz(*, channels: int, **more: Any) -> bytes:
    """A file as the authors write them: images without an axis for one channel, labels ``(N, 1)``."""
    draws = np.random.default_rng(channels)
    arrays: dict[str, Any] = {}
    for split, size in SIZES.items():
        shape = (size, 28, 28) if channels == 1 else (size, 28, 28, 3)
        arrays[f"{split}_images"] = draws.integers(0, 256, shape, np.uint8)
        arrays[f"{split}_labels"] = draws.integers(0, 2, (size, 1), np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, **(arrays | more))
    return file.getvalue()


def small(content: bytes, *, channels: int) -> Subset:
    md5 = hashlib.md5(content).hexdigest()
    return Subset(md5, channels, *SIZES.values(), classes=("malignant", "normal, benign"))


@pytest.mark.parametrize("channels", [1, 3])
def test_three_official_splits_from_a_mirror(channels: int, mirror: Mirror, tmp_path: Path) -> None:
    content = npz(channels=channels)
    mirror.files["breastmnist.npz"] = content
    source = Source(tmp_path, True, mirror("page/", "cut/", "good/"), timeout_seconds=1)
    files = read_subset("breastmnist", small(content, channels=channels), source)
    assert (tmp_path / "medmnist/breastmnist.npz").read_bytes() == content
    assert mirror.requests[-1] == ("/good/breastmnist.npz", f"bytes={len(content) // 2}-")
    arrays = np.load(io.BytesIO(content))
    assert files.val is not None
    for split, found in (("train", files.train), ("val", files.val), ("test", files.test)):
        assert found.images.shape == (SIZES[split], 28, 28, channels)
        assert np.array_equal(found.images.reshape(arrays[f"{split}_images"].shape), arrays[f"{split}_images"])
        assert found.labels.tolist() == arrays[f"{split}_labels"][:, 0].tolist()
    assert files.identity.images == SIZES


@pytest.fixture
def load(
    tmp_path: Path, dataset: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[MedMNISTConfig, Dataset]]:
    """A small set as the whole program loads it: the table of published sets has one more."""

    def load(seed: int = 0, **values: Any) -> tuple[MedMNISTConfig, Dataset]:
        content = npz(channels=1)
        (tmp_path / "small.npz").write_bytes(content)
        monkeypatch.setitem(SUBSETS, "small", small(content, channels=1))
        config = dataset(MedMNISTConfig, tmp_path, subset="small", **values)
        check_available(config)
        return config, load_dataset(config, seed=seed)

    return load


def test_the_official_validation_images_are_the_val_split(load: Callable[..., tuple[MedMNISTConfig, Dataset]]) -> None:
    config, data = load(channels=1)
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (12, 5, 4)
    assert data.train.images.shape == (12, 28, 28, 1)
    assert (known_num_train(config), num_classes(config)) == (12, 2)
    smaller_config, smaller = load(channels=3, train_size=7)
    assert smaller.val is not None
    assert (len(smaller.train), known_num_train(smaller_config)) == (7, 7)
    assert (smaller.val.images == data.val.images).all(), "grey, as three equal channels"
    _, other = load(channels=1, seed=1)
    assert other.val is not None
    assert (other.val.images == data.val.images).all(), "the seed draws nothing"


def test_another_file_is_refused_and_a_pickle_runs_nothing(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    (tmp_path / "pathmnist.npz").write_bytes(npz(channels=3))
    with pytest.raises(ConfigError, match=r"pathmnist\.npz: expected MD5 a8b06965200029087d5bd730944a56c1, got "):
        load_medmnist(dataset(MedMNISTConfig, tmp_path, subset="pathmnist"))
    content = npz(channels=1, train_labels=np.array([{"a": 1}], dtype=object))
    (tmp_path / "evil.npz").write_bytes(content)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_subset("evil", small(content, channels=1), Source(tmp_path, False, ()))


def test_a_missing_file_is_named(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    message = r"dataset\.root: expected octmnist\.npz in .*, got none; add dataset\.download=true, or name the folder"
    with pytest.raises(ConfigError, match=message):
        check_available(dataset(MedMNISTConfig, tmp_path, subset="octmnist"))


def test_the_table() -> None:
    """All flat sets but ChestMNIST; their sizes by table 1 of the paper, where version 3 did not change them."""
    assert len(SUBSETS) == 11
    totals = {name: one.num_train + one.num_val + one.num_test for name, one in SUBSETS.items()}
    expected = {"pathmnist": 107_180, "dermamnist": 10_015, "octmnist": 109_309, "pneumoniamnist": 5_856}
    expected |= {"retinamnist": 1_600, "breastmnist": 780, "bloodmnist": 17_092, "tissuemnist": 236_386}
    assert expected.items() <= totals.items()
    assert {name for name, one in SUBSETS.items() if one.channels == 3} == {
        *("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
    }
    assert all(len(set(one.classes)) == len(one.classes) >= 2 for one in SUBSETS.values())
    assert len({one.md5 for one in SUBSETS.values()}) == 11
    assert medmnist.file_of("octmnist", SUBSETS["octmnist"]).name == "octmnist.npz"
