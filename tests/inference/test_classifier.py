"""A trained network, asked from Python."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import resnet_train
from resnet_train import Classifier
from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset
from resnet_train.data.decode import decode
from resnet_train.errors import ConfigError, RunError
from resnet_train.inference.trained import read_trained
from resnet_train.train import run


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Classifier:
    return resnet_train.load(tiny_run)


@pytest.fixture(scope="module")
def pixels(tiny_run: Path) -> np.ndarray:
    """The run's test images ``(50, 16, 16, 3)``."""
    config = read_trained(tiny_run).config
    return load_dataset(config.dataset, seed=config.seed).test.images.numpy()


@pytest.fixture
def files(pixels: np.ndarray, tmp_path: Path) -> list[Path]:
    """The same as files without loss."""
    paths = [tmp_path / f"{number:02}.png" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.mark.slow
def test_whatever_an_image_is_the_answer_is_the_same(model: Classifier, pixels: np.ndarray, files: list[Path]) -> None:
    expected = model.logits(torch.from_numpy(pixels)).double().softmax(1).numpy()
    assert len(np.unique(expected.argmax(1))) > 1
    forms = (
        files,
        [str(path) for path in files],
        [path.read_bytes() for path in files],
        list(pixels),
        [Image.fromarray(image) for image in pixels],
        (Image.open(path) for path in files),
    )
    for images in forms:
        found = model.predict(images)
        np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-6)
        assert [one.index for one in found] == expected.argmax(1).tolist()
        assert [one.label for one in found] == [model.classes[index] for index in expected.argmax(1)]
    gc.collect()  # files that PIL left open would warn


def test_what_a_prediction_says(model: Classifier, files: list[Path]) -> None:
    (found,) = model.predict([files[0]])
    assert len(found.probabilities) == len(model.classes) == 7
    assert sum(found.probabilities) == pytest.approx(1)
    assert found.confidence == max(found.probabilities)
    top = found.top(3)
    assert [label for label, _ in top] == [model.classes[i] for i in np.argsort(found.probabilities)[::-1][:3]]
    assert top[0] == (found.label, found.confidence)
    assert str(found) == f"{found.label} {100 * found.confidence:.2f} %"
    assert model.predict([]) == []


def test_images_of_other_sizes_and_modes(model: Classifier, tmp_path: Path) -> None:
    large = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 20)
    large.save(tmp_path / "grey.png")
    large.convert("CMYK").save(tmp_path / "print.jpg")
    found = model.predict([tmp_path / "grey.png", large, np.asarray(large), tmp_path / "print.jpg"])
    assert found[0] == found[1] == found[2]
    alone = model.predict([decode(tmp_path / "grey.png", 16)])[0]
    assert alone.probabilities == pytest.approx(found[0].probabilities, abs=1e-6)


def test_a_generator_is_not_gathered(model: Classifier, files: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield files[taken % len(files)]

    stream = model.stream(endless())
    assert all(not isinstance(next(stream), ConfigError) for _ in range(10))
    stream.close()
    assert taken < 5000


def test_what_cannot_be_read_is_named(model: Classifier, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    images = [files[0], tmp_path / "text.png", b"nothing", np.zeros((3, 3)), files[1]]
    found = list(model.stream(images))  # type: ignore[arg-type]
    kinds = "a path, the bytes of an image file, a Pillow image or an array of uint8"
    assert [str(one) for one in found if isinstance(one, ConfigError)] == [
        f"{tmp_path / 'text.png'}: expected an image, got something else; repair it or remove it",
        f"image 2: expected {kinds}, got bytes: something else",
        f"image 3: expected {kinds}, got ndarray: floating point values, whose range is not known",
    ]
    assert [found[0], found[4]] == model.predict(files[:2])
    with pytest.raises(ConfigError, match=r"text\.png: expected an image"):
        model.predict(images)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected a list of images, got one str; put it into \[...\]"):
        model.predict("cat.png")


def test_an_exported_file_answers_as_its_run(
    model: Classifier, tiny_run: Path, tmp_path: Path, files: list[Path]
) -> None:
    trained = read_trained(tiny_run)
    weights = {name: one.contiguous() for name, one in trained.weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata=trained.spec().to_metadata())
    exported = resnet_train.load(tmp_path / "model.safetensors")
    assert exported.classes == model.classes
    for one, other in zip(exported.predict(files), model.predict(files), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
    with pytest.raises(ConfigError, match="--checkpoint: expected a run directory beside it"):
        resnet_train.load(tmp_path / "model.safetensors", checkpoint="last")


def test_it_computes_as_the_run_evaluated(model: Classifier, tiny_run: Path, pixels: np.ndarray) -> None:
    config, summary = read_trained(tiny_run).config, read_trained(tiny_run).summary
    labels = load_dataset(config.dataset, seed=config.seed).test.labels
    assert summary is not None
    correct = (model.logits(torch.from_numpy(pixels)).argmax(1) == labels).sum()
    assert int(correct) == summary.last["test"].correct
    assert model.runs_on == f"cpu in fp32, {summary.kernels} kernels"


def test_a_diverged_network_has_no_answers(tiny_run: Path, pixels: np.ndarray) -> None:
    model = resnet_train.load(tiny_run)
    with torch.no_grad():
        model.network.model.fc.bias.fill_(math.nan)  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="got NaN: its training diverged"):
        model.predict(pixels[:2])


@pytest.mark.slow
def test_cifars_images_as_files_are_its_arrays(
    tiny: Callable[..., Config], compose: Callable[..., Config], cifar10_root: Path, tmp_path: Path
) -> None:
    run(tiny("epochs=null", "steps=5", "dataset.image_size=32"), directory=tmp_path / "run")
    model = resnet_train.load(tmp_path / "run")
    images = load_dataset(compose(f"dataset.root={cifar10_root}").dataset, seed=0).test.images[:40]
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.numpy()).save(path)
        np.testing.assert_array_equal(decode(path, 32), image)
    assert model.predict(paths) == model.answer(images)
