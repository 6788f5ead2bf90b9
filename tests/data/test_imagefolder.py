"""Folders of images: classes, order, links, and folders that are not as expected."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.available import check_available
from resnet_train.data.imagefolder import load_imagefolder
from resnet_train.errors import ConfigError
from resnet_train.runs.memory import total_bytes


def test_classes_and_images_are_sorted(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], colours: dict[str, tuple[int, int, int]]
) -> None:
    check_available(imagefolder(root))
    files = load_imagefolder(imagefolder(root))
    assert files.classes == ("blue", "green", "red")
    assert files.train.labels.dtype == np.int64
    assert files.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files.test.labels.tolist() == [0, 1, 2]
    for split in (files.train, files.test):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split.labels), 8, 8, 3)
        expected = np.array([colours[files.classes[label]] for label in split.labels])[:, None, None]
        np.testing.assert_allclose(split.images.astype(int), np.broadcast_to(expected, split.images.shape), atol=2)


@pytest.mark.parametrize("name", ["val", "Valid", "validation", "test"])
def test_one_folder_beside_train_holds_the_test_images(
    root: Path, name: str, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    (root / "val").rename(root / name)
    files = load_imagefolder(imagefolder(root))
    assert (len(files.test.labels), files.val) == (3, None)
    assert files.test_paths[0] == f"{name}/blue/x.gif"
    assert files.taken == f"test images from {name}/"


def test_val_chooses_and_test_is_scored(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    (root / "val").rename(root / "valid")
    shutil.copytree(root / "valid", root / "test")
    (root / "test/red/x.gif").rename(root / "test/red/y.gif")
    files = load_imagefolder(imagefolder(root))
    assert files.taken == "valid/ chooses the best checkpoint, test/ is scored once"
    assert files.val is not None
    assert files.val_paths == ("valid/blue/x.gif", "valid/green/x.gif", "valid/red/x.gif")
    assert files.test_paths == ("test/blue/x.gif", "test/green/x.gif", "test/red/y.gif")
    assert files.identity.images == {"train": 9, "val": 3, "test": 3}
    with pytest.raises(ConfigError, match=r"dataset\.val_size: expected 0 where .* validation images and test/, got 2"):
        load_imagefolder(imagefolder(root, val_size=2))
    (root / "validation").mkdir()
    with pytest.raises(ConfigError, match=r"expected one of valid/ and validation/ in .*, got all of them; rename"):
        check_available(imagefolder(root))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


def flat(root: Path) -> None:
    """All images in one folder."""
    for number, image in enumerate(sorted(root.glob("*/*/*.*"))):
        if image.is_file() and not image.name.startswith("."):
            image.rename(root / f"{number}{image.suffix}")
    for split in ("train", "val"):
        (root / split).rename(root.parent / split)


def test_folders_of_classes_alone_are_split_by_name(
    tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig], colours: dict[str, tuple[int, int, int]]
) -> None:
    root = tmp_path / "flat"
    for number in range(30):
        for name, colour in colours.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), colour).save(root / name / f"{number}.png")
    config = imagefolder(root, val_fraction=0.2)
    check_available(config)
    files = load_imagefolder(config)
    splits = [set(files.train_paths), set(files.val_paths), set(files.test_paths)]
    assert sum(map(len, splits)) == len(set().union(*splits)) == 90
    assert all({path.partition("/")[0] for path in split} == set(colours) for split in splits)
    assert files.taken == (
        "no train/: by a hash of each file's name 0.2 of the images are test images, 0.2 choose the best checkpoint"
    )
    Image.new("RGB", (8, 8)).save(root / "red/more.png")
    (root / "red/3.png").rename(root / "green/3.png")  # another 3.png is overwritten
    after = load_imagefolder(config)
    moved = {"red/3.png", "green/3.png", "red/more.png"}
    assert [set(found) - moved for found in (after.train_paths, after.val_paths, after.test_paths)] == [
        split - moved for split in splits
    ]
    assert not load_imagefolder(imagefolder(root)).val_paths
    with pytest.raises(ConfigError, match=r"contradict each other: give one$"):
        check_available(imagefolder(root, val_fraction=0.2, val_size=3))
    with pytest.raises(
        ConfigError, match=r"expected test images of each class, .* none of 'blue' \(30 images\), 'green'"
    ):
        load_imagefolder(imagefolder(root, test_fraction=1e-6))


def test_the_split_of_an_older_run_is_the_same(tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    """Written down before there were tables of labels: checkpoints hold this, and are resumed on these files."""
    root = tmp_path / "flat"
    for name in ("cats", "dogs", "é"):
        (root / name).mkdir(parents=True)
        for number in range(40):
            (root / name / f"{number}.ppm").write_bytes(b"P6 2 2 255\n" + bytes([number]) * 12)
    identity = load_imagefolder(imagefolder(root, val_fraction=0.15, test_fraction=0.3)).identity
    assert identity.images == {"train": 66, "val": 18, "test": 36}
    assert identity.digest == "f2b50f0ed01cfc8994e0840621c67f9a1c17532cb1ac498191d7f132251fc312"


def test_a_class_without_test_images_is_named_with_a_fraction_that_has_some(
    tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    root = tmp_path / "few"
    for name, number in (("cats", 30), ("dogs", 2)):
        (root / name).mkdir(parents=True)
        for index in range(1, number + 1):
            Image.new("RGB", (8, 8)).save(root / name / f"{index}.png")
    with pytest.raises(
        ConfigError,
        match=r"expected test images of each class, .* got none of 'dogs' \(2 images\); try dataset\.test_fr",
    ) as caught:
        load_imagefolder(imagefolder(root))
    fraction = float(str(caught.value).rpartition("=")[2])
    better = load_imagefolder(imagefolder(root, test_fraction=fraction))
    assert sorted(set(better.test.labels.tolist())) == sorted(set(better.train.labels.tolist())) == [0, 1]


def test_a_fraction_is_refused_where_there_is_train(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.val_fraction: expected 0 where .* has train/, got 0\.1; hold"):
        check_available(imagefolder(root, val_fraction=0.1))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (rename("val", "other"), "neither val/ nor test/; move some images of each class (one in five, say) from ..."),
        (rename("val", "dev"), "dev/; rename dev/ to val/"),
        (rename("train", "training"), "no train/; add dataset.root=FOLDER"),
        (lambda root: root.rename(root.with_name("moved")), "no such folder; add dataset.root=FOLDER"),
        (flat, "10 images and no folders; put the images of each class into a folder of its own, CLASS/"),
    ],
    ids=["val", "dev", "train", "root", "flat"],
)
def test_folders_that_are_not_as_expected(
    root: Path,
    change: Callable[[Path], object],
    got: str,
    imagefolder: Callable[..., ImageFolderConfig],
    exactly: Callable[[str], str],
) -> None:
    change(root)
    message = f"dataset.root: expected train/ and val/ (or test/) with one folder a class in {root}, got {got}"
    for function in (check_available, load_imagefolder):
        with pytest.raises(ConfigError, match=exactly(message)):
            function(imagefolder(root))


def test_train_in_place_of_the_root(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    with pytest.raises(ConfigError, match=rf", got no train/; add dataset\.root={root}$"):
        check_available(imagefolder(root / "train"))


def test_images_without_class_folders(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    for image in [*root.glob("train/*/*.png"), *root.glob("train/*/*.bmp")]:
        if not image.parent.name.startswith(".") and not image.name.startswith("."):
            image.rename(root / "train" / f"{image.parent.name}-{image.name}")
    for name in ("red", "green", "blue"):
        (root / "train" / name).rename(root / name)
    with pytest.raises(ConfigError, match=r", got none, and 6 images outside of folders; put the images into them$"):
        check_available(imagefolder(root))


@pytest.mark.parametrize(("kept", "got"), [((), "none"), (("red",), "red")])
def test_two_classes_are_the_least(
    root: Path,
    kept: tuple[str, ...],
    got: str,
    imagefolder: Callable[..., ImageFolderConfig],
    colours: dict[str, tuple[int, int, int]],
    exactly: Callable[[str], str],
) -> None:
    for name in set(colours) - set(kept):
        (root / "train" / name).rename(root / "train" / f".{name}")
    message = f"{root}/train: expected two or more folders, one a class, got {got}; put the images into them"
    with pytest.raises(ConfigError, match=exactly(message)):
        check_available(imagefolder(root))


def test_a_class_that_train_lacks_is_refused(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    (root / "val/green").rename(root / "val/Green")
    (root / "val/blue").rename(root / "val/Blue")
    message = (
        f"{root}/val: expected folders of the 3 classes of train/, got 'Blue', 'Green'; rename or remove them, or add "
        f"the class to train/"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_refused(
    root: Path, split: str, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    for path in (root / split / "red").glob("?.*"):
        path.unlink()
    if split == "train":
        (root / "train/red/more/c.JPG").unlink()
    (root / split / "red/notes.txt").touch()
    (root / split / "red/photo.HEIC").touch()
    message = (
        f"{root}/{split}: expected images (.jpg, .png, .webp and what else Pillow reads) in each folder, got none in "
        f"red (2 files: .heic 1, .txt 1); add some, or remove the folder"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


def test_val_without_classes_is_refused(
    root: Path,
    imagefolder: Callable[..., ImageFolderConfig],
    colours: dict[str, tuple[int, int, int]],
    exactly: Callable[[str], str],
) -> None:
    for name in colours:
        (root / "val" / name).rename(root / "val" / f".{name}")
    message = f"{root}/val: expected one folder a class, as in train/, got none; put the images into them"
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


def test_links_are_followed(root: Path, tmp_path: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    (root / "train/red/more").rename(tmp_path / "more")
    (root / "train/red/more").symlink_to(tmp_path / "more")
    (root / "train/blue").rename(tmp_path / "blue")
    (root / "train/blue").symlink_to(tmp_path / "blue")
    assert len(load_imagefolder(imagefolder(root)).train.labels) == 9


def test_a_link_back_to_where_it_lies_is_refused(
    root: Path, imagefolder: Callable[..., ImageFolderConfig], exactly: Callable[[str], str]
) -> None:
    (root / "train/red/more/again").symlink_to(root / "train/red")
    message = (
        f"dataset.root: expected to read and write files in {root}, got Too many levels of symbolic links "
        f"({root}/train/red/more/again); see to its permissions and free space, or add dataset.root=FOLDER"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        load_imagefolder(imagefolder(root))


# --------------------------------------------------------------------------------------------- what counts as an image


def test_whatever_pillow_reads_is_an_image(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "pgm": "PPM", "TGA": "TGA", "apng": "PNG"}
    kinds |= {"jp2": "JPEG2000"} if features.check("jpg_2000") else {}
    kinds |= {"avif": "AVIF"} if "avif" in features.modules and features.check("avif") else {}
    for ending, kind in kinds.items():
        image = Image.new("L" if ending == "pgm" else "RGB", (12, 10), 200 if ending == "pgm" else (0, 0, 255))
        image.save(root / f"train/blue/photo.{ending}", kind)
    files = load_imagefolder(imagefolder(root))
    assert (len(files.train.labels), files.left_out) == (9 + len(kinds), "")


def test_what_is_left_out_is_counted_by_ending(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    for name in (
        "train/red/1.heic",
        "train/red/more/2.HEIC",
        "val/blue/read me",
        "train/blue/paper.pdf",
        "train/a.txt",
    ):
        (root / name).touch()
    Image.new("RGB", (12, 10)).save(root / "train/outside.png")
    files = load_imagefolder(imagefolder(root))
    assert len(files.train.labels) == 9
    assert files.left_out == "5 files: .heic 2, .pdf 1, no ending 1, outside of the class folders 1"


def test_thumbnails_of_systems_are_no_images(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    for name in ("train/@eaDir/a.jpg", "train/red/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "val/__MACOSX/red/a.png"):
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", (12, 10)).save(root / name)
    (root / "train/red/desktop.ini").touch()
    files = load_imagefolder(imagefolder(root))
    assert (files.classes, len(files.train.labels), files.left_out) == (("blue", "green", "red"), 9, "")


def test_names_are_compared_in_unicodes_composed_form(
    root: Path, imagefolder: Callable[..., ImageFolderConfig]
) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (root / "train/red").rename(root / "train" / decomposed)
    (root / "val/red").rename(root / "val" / composed)
    files = load_imagefolder(imagefolder(root))
    assert files.classes == ("blue", composed, "green")
    (root / "val" / composed).rename(root / "val" / decomposed)
    (root / "train" / decomposed).rename(root / "train" / composed)
    again = load_imagefolder(imagefolder(root))
    assert again.identity == files.identity
    np.testing.assert_array_equal(again.train.images, files.train.images)
    (root / "train" / decomposed).mkdir()
    with pytest.raises(ConfigError, match=r"got two that are both called 'café' and differ only in how Unicode writes"):
        load_imagefolder(imagefolder(root))


def test_images_that_no_memory_holds_are_not_decoded(root: Path, imagefolder: Callable[..., ImageFolderConfig]) -> None:
    there = total_bytes()
    assert there is not None
    for number in range(there // (3 * 4096 * 4096) + 1):
        os.link(root / "train/red/a.png", root / f"train/red/{number}.png")
    with pytest.raises(ConfigError, match=r"^dataset\.image_size: expected what fits into the .* images of 4096x4096,"):
        load_imagefolder(imagefolder(root, image_size=4096))
    assert not (root / ".resnet-train-cache").exists()
