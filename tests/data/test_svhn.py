"""SVHN from files in its official format."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from resnet_train.config.dataset import SVHNConfig
from resnet_train.config.run import Config
from resnet_train.data.available import check_available
from resnet_train.data.published import PublishedFile, Source
from resnet_train.data.svhn import TEST, TRAIN, load_svhn, read_files
from resnet_train.errors import ConfigError
from tests.conftest import Shell
from tests.data.conftest import Mirror

scipy_io = pytest.importorskip("scipy.io")


@pytest.fixture(scope="module")
def mats() -> dict[str, bytes]:
    """Two .mat files of version 5: ``X`` ``(32, 32, 3, N)``, and ``y`` ``(N, 1)`` from 1 to 10."""
    files = {}
    draws = np.random.default_rng(0)
    for file, size in ((TRAIN, 20), (TEST, 11)):
        content = io.BytesIO()
        images = draws.integers(0, 256, (32, 32, 3, size), np.uint8)
        labels = np.arange(size, dtype=np.uint8)[:, None] % 10 + 1
        scipy_io.savemat(content, {"X": images, "y": labels}, do_compression=True)
        files[file.name] = content.getvalue()
    return files


def published(name: str, content: bytes) -> PublishedFile:
    return PublishedFile("SVHN", name, hashlib.md5(content).hexdigest())


def test_as_torchvision_reads_it(
    mats: dict[str, bytes], mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.files = mats
    train, test = (published(name, content) for name, content in mats.items())
    files = read_files(train, test, Source(tmp_path, True, mirror("good/"), timeout_seconds=1))
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda _: True)  # which knows the large files alone
    for split, found in (("train", files.train), ("test", files.test)):
        theirs = datasets.SVHN(tmp_path, split=split)
        assert np.array_equal(theirs.data.transpose(0, 2, 3, 1), found.images)
        assert theirs.labels.tolist() == found.labels.tolist()
    assert files.train.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert files.train.images.shape == (20, 32, 32, 3)


def test_the_table_is_that_of_torchvision(compose: Callable[..., Config]) -> None:
    (mirror,) = compose("dataset=svhn").dataset.mirrors
    for split, file in (("train", TRAIN), ("test", TEST)):
        assert datasets.SVHN.split_list[split] == [mirror + file.name, file.name, file.md5]


def test_another_file_and_none(mats: dict[str, bytes], tmp_path: Path, dataset: Callable[..., Any]) -> None:
    config = dataset(SVHNConfig, tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.root: expected train_32x32\.mat in .*, got none; add "):
        check_available(config)
    for name, content in mats.items():
        (tmp_path / name).write_bytes(content)
    check_available(config)
    with pytest.raises(ConfigError, match=r"train_32x32\.mat: expected MD5 e26dedcc434d2e4c54c9b2d4a06d8373, got "):
        load_svhn(config)


@pytest.mark.slow
def test_without_scipy(shell: Shell) -> None:
    program = (
        "import sys\nsys.modules['scipy'] = None\nimport importlib.util\n"
        "from resnet_train.cli.compose import load_config\nfrom resnet_train.data.available import check_available\n"
        "check_available(load_config(['dataset=svhn']).dataset)"
    )
    code, _, err = shell.call(program=(sys.executable, "-c", program))
    assert code == 1
    assert 'dataset=svhn: its .mat files need scipy, got none; pip install "resnet-train[svhn]"' in err
