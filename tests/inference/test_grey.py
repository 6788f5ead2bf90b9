"""A network of grey images as a file: one channel in, from photographs and from the data set that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_train import load
from resnet_train.config.run import Config
from resnet_train.inference.check import given_images, own_images
from resnet_train.inference.export import export
from resnet_train.inference.subject import open_subject
from resnet_train.inference.trained import read_trained
from resnet_train.train import run


@pytest.fixture(scope="module")
def grey_run(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grey") / "run"
    grey = ("dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.25]")
    run(tiny(*grey, "epochs=null", "steps=3", "model.width=0.5"), directory=directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "raw"), [("onnx", False), ("onnx", True), ("pt2", False), ("safetensors", True)])
def test_a_file_answers_as_its_run(kind: str, raw: bool, grey_run: Path, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    trained = read_trained(grey_run)
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 16, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    assert given_images([tmp_path / "photo.png"], trained).shape == (1, 16, 16, 1)
    path, card = tmp_path / f"model.{kind}", tmp_path / "README.md"
    done = export(trained, path, card=card, images=own_images(trained), raw=raw)
    assert done.spec.takes.startswith("float32 (N, 1, 16, 16), grey in [0, 1]" if raw else "uint8 (N, 16, 16, 1), grey")
    found, expected = load(path), load(grey_run)
    pairs = zip(found.predict([photo, tmp_path / "photo.png"]), expected.predict([photo, photo]), strict=True)
    for one, other in pairs:
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    if kind != "safetensors":
        assert 'np.asarray(image.convert("L"))[..., None]' in card.read_text()
    subject = open_subject([str(path)], weights=None, checkpoint="result", device="cpu", precision=None)
    assert (subject.config.dataset.channels, subject.config.dataset.mean) == (1, [0.5])
    assert subject.config.dataset.image_size == 16, "of the file"
