"""STL-10 from an archive in its official format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from resnet_train.config.run import Config
from resnet_train.data.available import check_available
from resnet_train.data.published import Source
from resnet_train.data.stl10 import CLASSES, STL10, read_archive
from resnet_train.errors import ConfigError
from tests.data.conftest import Mirror, tar_gz


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """As published: planes by column, labels from 1; and images without labels, which nobody wants."""
    draws = np.random.default_rng(0)
    found = {}
    for split, size in (("train", 7), ("test", 4)):
        found[f"{split}_X.bin"] = draws.integers(0, 256, size * 3 * 96 * 96, np.uint8).tobytes()
        found[f"{split}_y.bin"] = bytes(number % 10 + 1 for number in range(size))
    names = "".join(f"{name}\n" for name in CLASSES).encode()
    return found | {"unlabeled_X.bin": bytes(27648), "class_names.txt": names}


def test_as_torchvision_reads_it(
    files: dict[str, bytes], mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar_gz({f"stl10_binary/{name}": content for name, content in files.items()})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    archive = replace(
        STL10,
        md5=hashlib.md5(content).hexdigest(),
        train={name: sums[name] for name in STL10.train},
        test={name: sums[name] for name in STL10.test},
    )
    mirror.files["stl10_binary.tar.gz"] = content
    found = read_archive(archive, Source(tmp_path, True, mirror("cut/", "good/"), timeout_seconds=1))
    assert not (tmp_path / "stl10_binary/unlabeled_X.bin").exists(), "2.7 GB that are not read"
    (tmp_path / "stl10_binary/class_names.txt").write_bytes(files["class_names.txt"])
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)  # which knows the large files alone
    for split, images in (("train", found.train), ("test", found.test)):
        theirs = datasets.STL10(tmp_path, split=split)
        assert np.array_equal(theirs.data.transpose(0, 2, 3, 1), images.images)
        assert theirs.labels.tolist() == images.labels.tolist()
        assert theirs.classes == list(found.classes)
    (tmp_path / "stl10_binary/test_y.bin").write_bytes(b"\1" * 4)
    with pytest.raises(ConfigError, match=r"test_y\.bin: expected MD5 .*, got .*: the file is corrupt"):
        read_archive(archive, Source(tmp_path, False, ()))


@pytest.mark.slow
def test_the_table_is_that_of_torchvision(compose: Callable[..., Config], tmp_path: Path) -> None:
    theirs = datasets.STL10
    assert (STL10.filename, STL10.md5, STL10.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
    assert list(STL10.train.items()) == [tuple(pair) for pair in theirs.train_list[:2]]
    assert list(STL10.test.items()) == [tuple(pair) for pair in theirs.test_list]
    assert compose("dataset=stl10").dataset.mirrors == [theirs.url]
    config = compose("dataset=stl10", f"dataset.root={tmp_path}", "dataset.download=false").dataset
    with pytest.raises(ConfigError, match=r"expected stl10_binary/ or stl10_binary\.tar\.gz in .*, got neither"):
        check_available(config)
