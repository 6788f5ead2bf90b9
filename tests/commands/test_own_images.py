"""From a flat folder of photographs to a report, by the commands of docs/data.md: wrong labels are named first."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from resnet_train.data.hash_split import split_of
from tests.conftest import Shell

COLOURS = {"apples": (190, 50, 40), "leaves": (50, 160, 60), "skies": (60, 90, 200)}


@pytest.mark.slow
def test_mislabelled_photographs_come_first(shell: Shell) -> None:
    photos, draws = shell.folder / "photos", np.random.default_rng(0)
    names = [f"IMG_{number:04}.jpg" for number in range(60)]
    more = (f"IMG_{number}.jpg" for number in range(9000, 9999))
    wrong = [name for name in more if split_of(name, test_fraction=0.2) == "test"][:3]
    classes = list(COLOURS)
    planted = {f"{label}/{name}" for label, name in zip(classes, wrong, strict=True)}
    shown = [(label, name, label) for label in classes for name in names]
    shown += [(label, name, classes[index - 1]) for index, (label, name) in enumerate(zip(classes, wrong, strict=True))]
    for label, name, truth in shown:
        (photos / label).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(draws.normal(COLOURS[truth], 35, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(photos / label / name)
    small = ("dataset.image_size=16", "model.depth=8", "model.width=0.25", "batch_size=16", "device=cpu")
    code, out, err = shell.call("dataset=imagefolder", "dataset.root=photos", *small, "epochs=12", "log_every=100")
    assert code == 0, err
    assert "splits     no train/: by a hash of each file's name 0.2 of the images are test images" in out
    code, out, err = shell.call("latest", program="resnet-eval")
    assert code == 0, err
    (table,) = shell.folder.glob("outputs/**/eval/test-last/mistakes.csv")
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert {row["path"] for row in rows[:3]} == planted
    code, _, err = shell.call("latest", "--html", "report.html", program="resnet-report")
    assert code == 0, err
    page = (shell.folder / "report.html").read_text(encoding="utf-8")
    assert all(path in page for path in planted)
