"""CIFAR as published, from folders and archives; archives and batches that misbehave."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_train.config.dataset import Cifar10Config
from resnet_train.data.archive import obtain
from resnet_train.data.cifar import CIFAR10, CIFAR100, load_cifar, read_batches
from resnet_train.data.files import Files
from resnet_train.data.published import Source
from resnet_train.errors import ConfigError
from tests.data.conftest import Published


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(scope="module")
def real(cifar10_root: Path, cifar10: Callable[..., Cifar10Config]) -> Files:
    return load_cifar(cifar10(cifar10_root))


def test_cifar10_has_5000_and_1000_images_of_each_class(real: Files) -> None:
    assert real.train.images.shape == (50_000, 32, 32, 3)
    assert real.test.images.shape == (10_000, 32, 32, 3)
    for split, count in ((real.train, 5000), (real.test, 1000)):
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).tolist() == [count] * 10
    assert " ".join(real.classes) == "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.mark.slow
def test_cifar10_is_in_the_order_of_its_files(real: Files) -> None:
    assert real.train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert real.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    # The means of conf/dataset/cifar10.yaml, of red, green and blue: channels are where they belong.
    means = real.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)


def test_the_tables_are_those_of_torchvision() -> None:
    from torchvision import datasets

    for archive, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert (archive.filename, archive.md5, archive.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
        assert list(archive.train.items()) == [tuple(item) for item in theirs.train_list]
        assert list(archive.test.items()) == [tuple(item) for item in theirs.test_list]
        assert archive.meta == {theirs.meta["filename"]: theirs.meta["md5"]}
        assert archive.classes_key == theirs.meta["key"].encode()


def test_root_may_be_the_folder_itself(cifar10_root: Path) -> None:
    folder = cifar10_root / CIFAR10.folder
    assert obtain(CIFAR10, Source(folder, False, ())) == folder


def test_a_flipped_bit_is_found_and_named(
    cifar10_root: Path, tmp_path: Path, cifar10: Callable[..., Cifar10Config], exactly: Callable[[str], str]
) -> None:
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name in CIFAR10.files:
        (folder / name).symlink_to(cifar10_root / CIFAR10.folder / name)
    original = (folder / "data_batch_1").read_bytes()
    content = original[:20_000_000] + bytes([original[20_000_000] ^ 1]) + original[20_000_001:]
    (folder / "data_batch_1").unlink()
    (folder / "data_batch_1").write_bytes(content)
    message = (
        f"{folder}/data_batch_1: expected MD5 c99cafc152244af753f735de768cd75f, got {md5(content)}: the file is "
        f"corrupt; delete it and run again with dataset.download=true, or provide it again"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_cifar(cifar10(tmp_path))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_batches_of_numpy_1_and_2_are_read(published: Published, tmp_path: Path, module: str) -> None:
    def opcode(module: str) -> bytes:  # SHORT_BINUNICODE, as protocol 4 writes names
        return b"\x8c" + bytes([len(module)]) + module.encode()

    files = dict(published.files)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        for written in ("numpy.core.multiarray", "numpy._core.multiarray"):
            files[name] = files[name].replace(opcode(written), opcode(module))
        # A frame announces its length, which changes with the name; readers do without it.
        assert files[name][2:3] == b"\x95"
        files[name] = files[name][:2] + files[name][11:]
        assert opcode(module) in files[name]
    archive = replace(
        published.archive,
        train={name: md5(files[name]) for name in published.archive.train},
        test={"test_batch": md5(files["test_batch"])},
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(read_batches(archive, tmp_path).train.images, published.images)


class Bomb:
    """Pickles as a call that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing_even_if_its_md5_is_expected(
    published: Published, tmp_path: Path, exactly: Callable[[str], str]
) -> None:
    content = pickle.dumps({b"data": Bomb(tmp_path / "ran"), b"labels": []}, protocol=4)
    for name in published.archive.files:
        (tmp_path / name).write_bytes(content if name == "data_batch_2" else published.files[name])
    archive = replace(published.archive, train=published.archive.train | {"data_batch_2": md5(content)})
    message = (
        f"{tmp_path}/data_batch_2: expected arrays and lists, got a call of posix.mkdir; delete it and get it from the "
        f"data set's own page"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        read_batches(archive, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_archive_is_unpacked_and_stays(published: Published, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz").write_bytes(published.content)
    folder = obtain(published.archive, Source(tmp_path, False, ()))
    assert folder == tmp_path / "small"
    assert {path.name for path in folder.iterdir()} == set(published.files)  # without the read-me
    assert {path.name for path in tmp_path.iterdir()} == {"small", "small.tar.gz", "small.tar.gz.lock"}
    files = read_batches(published.archive, folder)
    np.testing.assert_array_equal(files.train.images, published.images)
    np.testing.assert_array_equal(files.test.images, published.images[:5])
    assert files.train.labels.tolist() == [index % 3 for index in range(30)] + [2] * 20
    assert files.classes == ("ant", "bee", "cow")


def test_a_deleted_batch_comes_back_from_the_archive(published: Published, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz").write_bytes(published.content)
    folder = obtain(published.archive, Source(tmp_path, False, ()))
    (folder / "data_batch_2").unlink()
    assert obtain(published.archive, Source(tmp_path, False, ())) == folder
    assert (folder / "data_batch_2").read_bytes() == published.files["data_batch_2"]


def test_a_corrupt_archive_is_named_and_left_alone(
    published: Published, tmp_path: Path, exactly: Callable[[str], str]
) -> None:
    path = tmp_path / "small.tar.gz"
    path.write_bytes(published.content[:-1])
    message = (
        f"{path}: expected MD5 {published.archive.md5}, got {md5(published.content[:-1])}: the file is corrupt; "
        f"delete it and run again with dataset.download=true, or provide it again"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        obtain(published.archive, Source(tmp_path, True, ()))
    assert path.read_bytes() == published.content[:-1]


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("small/../../escaped"),
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("/tmp/escaped"),
        tarfile.TarInfo("other/data_batch_1"),
        link("small/data_batch_1", tarfile.SYMTYPE),
        link("small/data_batch_1", tarfile.LNKTYPE),
        link("small/data_batch_1", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name} {member.type!r}",
)
def test_an_archive_cannot_write_elsewhere(
    published: Published, tmp_path: Path, member: tarfile.TarInfo, exactly: Callable[[str], str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = root / "small.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member)
    archive = replace(published.archive, md5=md5(path.read_bytes()))
    message = (
        f"{path}: expected plain files in small/, got the member {member.name!r}; delete the archive and run again "
        f"with dataset.download=true, or provide it again"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        obtain(archive, Source(root, False, ()))
    assert {path.name for path in root.iterdir()} == {"small.tar.gz", "small.tar.gz.lock"}
    assert list(tmp_path.iterdir()) == [root]
