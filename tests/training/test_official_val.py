"""A run on a data set with an official validation split: the best checkpoint is chosen on it, and it is resumed."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_train.cli.compose import load_config
from resnet_train.config.medmnist import SUBSETS, Subset
from resnet_train.config.run import Config
from resnet_train.inference.evaluation import split_of
from resnet_train.inference.load import load
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.train import run

SIZES = {"train": 96, "val": 40, "test": 24}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Runs on a file of MedMNIST's format: dark and bright images."""
    draws = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, size in SIZES.items():
        labels = draws.integers(0, 2, (size, 1), np.uint8)
        noise = draws.integers(0, 120, (size, 28, 28), np.uint8)
        arrays |= {f"{split}_labels": labels, f"{split}_images": noise + 90 * labels[..., None]}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    (tmp_path / "small.npz").write_bytes(file.getvalue())
    md5 = hashlib.md5(file.getvalue()).hexdigest()
    monkeypatch.setitem(SUBSETS, "small", Subset(md5, 1, *SIZES.values(), classes=("dark", "bright")))
    data = ("dataset=medmnist", "dataset.subset=small", f"dataset.root={tmp_path}", "dataset.download=false")
    small = ("model.depth=8", "model.width=0.25", "batch_size=16", "device=cpu", "precision=fp32", "kernels=plain")
    return lambda *overrides: load_config([*data, *small, "schedule.warmup=0", *overrides])


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_official_split(
    config: Callable[..., Config],
    tmp_path: Path,
    assert_same: Callable[[Any, Any], None],
) -> None:
    asked = config("epochs=3", "checkpoint.every=1")
    summary = run(asked, directory=tmp_path / "straight")
    assert summary.images == SIZES
    assert summary.best["val"].count == 40
    assert (tmp_path / "straight/checkpoints/best.pt").is_file()
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for name in ("summary.json", "checkpoints/last.pt", "checkpoints/step-00000018.pt"):
        (tmp_path / "resumed" / name).unlink()
    run(asked, directory=tmp_path / "resumed")
    ends = [read_checkpoint(tmp_path / name / "checkpoints/last.pt")["state"] for name in ("straight", "resumed")]
    assert_same(*ends)
    val, data = split_of(asked, "val")
    assert (len(val), data.classes) == (40, ("dark", "bright"))
    classifier = load(tmp_path / "straight", device="cpu")
    found = classifier.logits(val.images).argmax(1)
    assert int((found == val.labels).sum()) == summary.best["val"].correct
