"""Tiny ImageNet, Imagenette and EuroSAT from archives in their official formats."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from resnet_train.config.dataset import EuroSATConfig, ImageArchiveConfig, ImagenetteConfig, TinyImageNetConfig
from resnet_train.config.run import Config
from resnet_train.data.archive import Archive, obtain
from resnet_train.data.available import check_available
from resnet_train.data.files import Files
from resnet_train.data.image_archive import (
    EUROSAT,
    EUROSAT_CLASSES,
    IMAGENETTE,
    IMAGENETTE_NAMES,
    TINY_IMAGENET,
    Tree,
    read_tree,
)
from resnet_train.data.published import Source
from resnet_train.errors import ConfigError
from tests.data.conftest import Mirror, tar_gz


def jpeg(colour: int, *, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, colour).convert(mode).save(file, "JPEG")
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.mkdir(next(iter(files)).partition("/")[0])
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tiny_imagenet() -> dict[str, bytes]:
    """Three classes, two of the same first name, one image grey; val/ is flat, its labels are in a file."""
    words = {"n3": "crane, bird", "n1": "tench, Tinca tinca", "n2": "crane", "n9": "unicorn"}
    files = {
        "wnids.txt": b"n3\nn1\nn2\n",
        "words.txt": "".join(f"{wnid}\t{text}\n" for wnid, text in words.items()).encode(),
        "val/val_annotations.txt": b"val_0.JPEG\tn3\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\n",
        "val/images/val_0.JPEG": jpeg(240),
        "val/images/val_1.JPEG": jpeg(40),
        "test/images/test_0.JPEG": jpeg(0),
    }
    for number, wnid in enumerate(("n1", "n2", "n3")):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        for image in range(2):
            mode = "L" if (number, image) == (1, 1) else "RGB"
            files[f"train/{wnid}/images/{wnid}_{image}.JPEG"] = jpeg(40 + 100 * number + image, mode=mode)
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


def imagenette() -> dict[str, bytes]:
    """Photographs of any shape, in folders called by WordNet ids."""
    files = {"noisy_imagenette.csv": b"path,noisy_labels_0\n"}
    for number, wnid in enumerate(IMAGENETTE_NAMES):
        files[f"train/{wnid}/{wnid}_0.JPEG"] = jpeg(20 * number, size=(30, 20))
        files[f"val/{wnid}/{wnid}_1.JPEG"] = jpeg(20 * number + 9, size=(20, 31))
    return {f"imagenette2-160/{name}": content for name, content in files.items()}


def eurosat() -> dict[str, bytes]:
    """Folders of classes, no split."""
    return {
        f"2750/{name}/{name}_{number}.jpg": jpeg(25 * label + number)
        for label, name in enumerate(EUROSAT_CLASSES)
        for number in range(1, 6)
    }


KINDS: dict[type[ImageArchiveConfig], tuple[Tree, Callable[[], dict[str, bytes]], Callable[..., bytes], int, int]] = {
    TinyImageNetConfig: (TINY_IMAGENET, tiny_imagenet, zipped, 6, 2),
    ImagenetteConfig: (IMAGENETTE, imagenette, tar_gz, 10, 10),
    EuroSATConfig: (EUROSAT, eurosat, zipped, 39, 11),
}


def small(kind: type[ImageArchiveConfig], mirror: Mirror) -> Tree:
    """A small archive of that format, which ``mirror`` has."""
    tree, made, packed, num_train, num_test = KINDS[kind]
    content = packed(made())
    mirror.files[tree.archive.filename] = content
    archive = replace(tree.archive, md5=hashlib.md5(content).hexdigest())
    return replace(tree, archive=archive, num_train=num_train, num_test=num_test)


@pytest.fixture
def read(
    mirror: Mirror, tmp_path: Path, dataset: Callable[..., Any]
) -> Callable[[type[ImageArchiveConfig]], tuple[Tree, Files]]:
    """Download, unpack and read a small archive, at 8x8 pixels."""

    def read(kind: type[ImageArchiveConfig]) -> tuple[Tree, Files]:
        tree = small(kind, mirror)
        source = Source(tmp_path, True, mirror("cut/", "good/"), timeout_seconds=1)
        return tree, read_tree(tree, dataset(kind, tmp_path, image_size=8, cache=None), source)

    return read


def test_tiny_imagenet(read: Callable[..., tuple[Tree, Files]], mirror: Mirror, tmp_path: Path) -> None:
    _, files = read(TinyImageNetConfig)
    assert files.classes == ("tench", "crane (n2)", "crane (n3)")
    assert files.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert files.train.images.shape == (6, 8, 8, 3)
    assert files.train.images[:, 4, 4].max(1).tolist() == [40, 41, 140, 141, 240, 241]
    assert np.ptp(files.train.images[3], axis=-1).max() == 0, "the grey file has three equal channels"
    assert (files.test.labels.tolist(), files.test.images[:, 0, 0, 0].tolist()) == ([0, 2], [40, 240])
    assert files.test_paths == (
        "tiny-imagenet-200/val/images/val_1.JPEG",
        "tiny-imagenet-200/val/images/val_0.JPEG",
    )
    assert (tmp_path / files.train_paths[0]).is_file()
    asked = len(mirror.requests)
    assert not (tmp_path / "tiny-imagenet-200.zip.part").exists()
    _, again = read(TinyImageNetConfig)
    assert len(mirror.requests) == asked, "it is there"
    assert again.identity == files.identity
    (tmp_path / "tiny-imagenet-200/train/n1/images/n1_0.JPEG").write_bytes(jpeg(99))
    assert read(TinyImageNetConfig)[1].identity != files.identity


def test_imagenette(read: Callable[..., tuple[Tree, Files]]) -> None:
    _, files = read(ImagenetteConfig)
    assert files.classes == tuple(IMAGENETTE_NAMES.values())
    assert (files.train.labels.tolist(), files.test.labels.tolist()) == (list(range(10)), list(range(10)))
    assert files.train.images[:, 4, 4, 0].tolist() == [20 * number for number in range(10)]
    assert files.test.images.shape == (10, 8, 8, 3)


def test_eurosat_is_split_by_names(read: Callable[..., tuple[Tree, Files]], tmp_path: Path) -> None:
    _, files = read(EuroSATConfig)
    assert not set(files.train_paths) & set(files.test_paths)
    assert len(files.train_paths) + len(files.test_paths) == 50
    for paths, images in ((files.train_paths, files.train), (files.test_paths, files.test)):
        assert [files.classes[label] for label in images.labels] == [Path(path).parent.name for path in paths]
    theirs = datasets.folder.find_classes(str(tmp_path / "2750"))
    assert [name for name in theirs[0] if not name.startswith(".")] == list(files.classes)


def test_the_tables_are_those_of_torchvision(compose: Callable[..., Config]) -> None:
    archives = datasets.Imagenette._ARCHIVES["160px"]
    assert archives == (compose("dataset=imagenette").dataset.mirrors[0], IMAGENETTE.archive.md5)
    names = {wnid: names[0] for wnid, names in datasets.Imagenette._WNID_TO_CLASS.items()}
    assert names == IMAGENETTE_NAMES


def test_a_folder_that_lacks_images_is_refused(read: Callable[..., tuple[Tree, Files]], tmp_path: Path) -> None:
    read(ImagenetteConfig)
    (tmp_path / "imagenette2-160/train/n01440764/n01440764_0.JPEG").unlink()
    message = r"imagenette2-160: expected 10 and 10 images of Imagenette, got 9 and 10; delete "
    with pytest.raises(ConfigError, match=message):
        read(ImagenetteConfig)


def test_labels_that_are_corrupt(read: Callable[..., tuple[Tree, Files]], tmp_path: Path) -> None:
    read(TinyImageNetConfig)
    (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").write_text("val_0.JPEG")
    with pytest.raises(ConfigError, match="expected Tiny ImageNet, got labels that are corrupt; delete "):
        read(TinyImageNetConfig)


def test_images_that_cannot_be_read_are_all_named(read: Callable[..., tuple[Tree, Files]], tmp_path: Path) -> None:
    read(EuroSATConfig)
    for name in ("Forest_1", "Forest_2"):
        (tmp_path / f"2750/Forest/{name}.jpg").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"got 2 files that cannot be read: .*Forest_1\.jpg .*Forest_2\.jpg "):
        read(EuroSATConfig)


# ---------------------------------------------------------------------------------------------------------- archives


def test_a_folder_that_was_begun_by_others_is_left_alone(mirror: Mirror, tmp_path: Path) -> None:
    tree = small(EuroSATConfig, mirror)
    (tmp_path / "2750/Forest").mkdir(parents=True)
    source = Source(tmp_path, True, mirror("good/"), timeout_seconds=1)
    with pytest.raises(ConfigError, match=r"2750: expected EuroSAT, got it without AnnualCrop; move it away"):
        obtain(tree.archive, source)
    assert [path.name for path in (tmp_path / "2750").iterdir()] == ["Forest"]


@pytest.mark.parametrize("name", ["../outside.jpg", "2750/../../outside.jpg", "other/a.jpg", "2750/..\\a.jpg"])
def test_members_outside_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    content = zipped({"2750/Forest/a.jpg": b"", name: b"x"})
    archive = Archive("Evil", "evil.zip", hashlib.md5(content).hexdigest(), "2750", landmarks=("Forest",))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/evil.zip").write_bytes(content)
    with pytest.raises(ConfigError, match=r"evil\.zip: expected plain files in 2750/, got the member "):
        obtain(archive, Source(tmp_path / "root", False, ()))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evil.zip", "evil.zip.lock", "root"]


def test_missing_data_is_told_by_names(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    config = dataset(TinyImageNetConfig, tmp_path, image_size=64, cache=None)
    message = r"dataset\.root: expected tiny-imagenet-200/ or tiny-imagenet-200\.zip in .*, got neither; add "
    with pytest.raises(ConfigError, match=message):
        check_available(config)
