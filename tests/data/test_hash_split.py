"""Splits by the hash of a name."""

from __future__ import annotations

from collections import Counter

from resnet_train.data.hash_split import split_of

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
