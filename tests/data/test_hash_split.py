"""Splits by the hash of a name."""

from __future__ import annotations

from collections import Counter

from resnet_train.config.dataset import EuroSATConfig
from resnet_train.data.hash_split import split_of
from resnet_train.data.image_archive import EUROSAT

NAMES = [f"cats/{number}.jpg" for number in range(4000)]


def test_fractions_are_met_and_no_image_moves_when_another_fraction_changes() -> None:
    found = {name: split_of(name, val_fraction=0.1, test_fraction=0.2) for name in NAMES}
    counts = Counter(found.values())
    assert 720 < counts["test"] < 880  # three deviations around 800 are 76
    assert 340 < counts["val"] < 460
    without_val = {name: split_of(name, test_fraction=0.2) for name in NAMES}
    assert all((found[name] == "test") == (without_val[name] == "test") for name in NAMES)
    assert "val" not in without_val.values()


def test_of_names_and_of_nothing_else() -> None:
    """Written down: another version, or machine, has the same split."""
    assert [split_of(name, val_fraction=0.3, test_fraction=0.3) for name in ("a.png", "b.png", "é.png", "\udcff")] == (
        RECORDED
    )
    assert split_of("a.png", test_fraction=0.0) == "train"


RECORDED = ["val", "val", "test", "val"]


def test_the_numbers_of_eurosat() -> None:
    """By the class sizes of Helber et al. 2019; the files are called AnnualCrop_1.jpg and so on."""
    sizes = {"AnnualCrop": 3000, "Forest": 3000, "HerbaceousVegetation": 3000, "Highway": 2500, "Industrial": 2500}
    sizes |= {"Pasture": 2000, "PermanentCrop": 2500, "Residential": 3000, "River": 2500, "SeaLake": 3000}
    names = [f"{name}_{number}.jpg" for name, size in sizes.items() for number in range(1, size + 1)]
    counts = Counter(split_of(name, test_fraction=0.2) for name in names)
    assert counts == {"train": EUROSAT.num_train, "test": EUROSAT.num_test}
    assert EUROSAT.num_train == EuroSATConfig.NUM_TRAIN
