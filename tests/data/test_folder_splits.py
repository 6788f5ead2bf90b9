"""Own images without splits: no image moves another, every one lies somewhere, and what a class lacks is said."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet_train.config.dataset import ImageFolderConfig
from resnet_train.data.files import ImageFiles
from resnet_train.data.folder_splits import names_within, split_by_hash
from resnet_train.errors import ConfigError

Make = Callable[..., ImageFolderConfig]
CLASSES = ("ants", "bees", "cats")


def listed(images: dict[str, str]) -> ImageFiles:
    """Files by path, each with its class, as they are listed: sorted by class and path."""
    found = sorted(images.items(), key=lambda item: (item[1], item[0]))
    labels = np.array([CLASSES.index(label) for _, label in found], dtype=np.int64)
    return ImageFiles(Path("root"), tuple(path for path, _ in found), labels, is_root=True)


def drawn(draws: random.Random, sizes: tuple[int, ...], *, in_folders: bool) -> dict[str, str]:
    """Paths of as many images of each class, and their class."""
    named = [(name, f"{draws.random()}.jpg") for name, size in zip(CLASSES, sizes, strict=True) for _ in range(size)]
    return {f"{label}/{file}" if in_folders else file: label for label, file in named}


def split_names(config: ImageFolderConfig, images: dict[str, str], *, in_folders: bool) -> dict[str, str]:
    """The split of each path."""
    found = split_by_hash(config, listed(images), CLASSES, in_folders=in_folders)
    assert all(images[path] == CLASSES[label] for one in found.values() for path, label in pairs(one))
    return {path: split for split, one in found.items() for path in one.names}


def pairs(files: ImageFiles) -> list[tuple[str, int]]:
    return list(zip(files.names, files.labels.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("in_folders", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_images_that_come_and_go_move_no_other(imagefolder: Make, *, seed: int, in_folders: bool) -> None:
    draws = random.Random(seed)
    fractions = (draws.choice([0.0, 0.1, 0.3]), draws.choice([0.1, 0.2, 0.5]))
    config = imagefolder(Path("root"), val_fraction=fractions[0], test_fraction=fractions[1])
    images = drawn(draws, (90, 150, 90), in_folders=in_folders)
    before = split_names(config, images, in_folders=in_folders)
    assert before.keys() == images.keys()
    assert set(before.values()) == ({"train", "val", "test"} if fractions[0] else {"train", "test"})
    for step in range(20):
        if step % 2:
            images |= drawn(draws, (step, 0, 1), in_folders=in_folders)
        else:
            for path in draws.sample(sorted(images), 10):
                del images[path]
        after = split_names(config, images, in_folders=in_folders)
        assert after.keys() == images.keys()
        assert all(after[path] == split for path, split in before.items() if path in after)
        before |= after


def test_an_image_that_changes_its_class_stays_in_its_split(imagefolder: Make) -> None:
    images = drawn(random.Random(0), (50, 50, 50), in_folders=True)
    config = imagefolder(Path("root"), val_fraction=0.2)
    before = split_names(config, images, in_folders=True)
    path = next(path for path in images if path.startswith("ants/"))
    del images[path]
    moved = path.replace("ants/", "bees/")
    assert split_names(config, images | {moved: "bees"}, in_folders=True)[moved] == before[path]


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_every_small_data_set_is_split_or_told_what_serves(imagefolder: Make, val_fraction: float) -> None:
    """Whatever is advised is followed, and every class lies in every split then."""
    outcomes = {"whole": 0, "advised": 0, "by hand": 0}
    for seed in range(150):
        draws = random.Random(seed)
        files = listed(drawn(draws, (draws.randint(2, 12), draws.randint(1, 6), 20), in_folders=True))
        fractions, outcome = {"val_fraction": val_fraction}, "whole"
        try:
            found = split_by_hash(imagefolder(Path("root"), **fractions), files, CLASSES, in_folders=True)
        except ConfigError as error:
            said = re.match(
                r"root: expected (?:train|val|test) images of each class, by a hash of their names, got none .*; (.*)",
                str(error),
            )
            assert said, error
            fractions = {key: float(value) for key, value in re.findall(r"dataset\.(\w+_fraction)=([\d.]+)", said[1])}
            if not fractions:
                assert "say the splits yourself, in folders train/ and test/ or in a table" in said[1]
                outcomes["by hand"] += 1
                continue
            found, outcome = (
                split_by_hash(imagefolder(Path("root"), **fractions), files, CLASSES, in_folders=True),
                "advised",
            )
        assert all(set(one.labels.tolist()) == {0, 1, 2} for one in found.values())
        outcomes[outcome] += 1
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({}, r"^root: expected test .* 'cats' \(2 images\); try dataset\.test_fraction=0\.25$"),
        (
            {"val_fraction": 0.1, "test_fraction": 0.25},
            r"expected val .* 'cats' \(2 images\); add images, or say the sp",
        ),
        ({"test_fraction": 0.8}, r"^root: expected train .* 'cats' \(2 images\); try dataset\.test_fraction=0\.79$"),
    ],
    ids=["test", "val", "train"],
)
def test_a_class_that_a_split_lacks(imagefolder: Make, fractions: dict[str, float], message: str) -> None:
    """``a`` has the place 0.79, ``b`` 0.24."""
    images = drawn(random.Random(0), (60, 60, 0), in_folders=True) | {"cats/a": "cats", "cats/b": "cats"}
    assert split_by_hash(imagefolder(Path("root"), test_fraction=0.25), listed(images), CLASSES, in_folders=True)
    with pytest.raises(ConfigError, match=message):
        split_by_hash(imagefolder(Path("root"), **fractions), listed(images), CLASSES, in_folders=True)


def test_names_are_those_within_a_class_or_of_the_table() -> None:
    files = listed({"ants/more/1.jpg": "ants", "bees/2.jpg": "bees"})
    assert names_within(files, in_folders=True) == ["more/1.jpg", "2.jpg"]
    assert names_within(files, in_folders=False) == ["ants/more/1.jpg", "bees/2.jpg"]
