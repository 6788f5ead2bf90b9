"""Grey images from the configuration to what is done with the trained network: one channel all the way."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset
from resnet_train.errors import ConfigError
from resnet_train.inference.load import load
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.train import run

GREY = ("dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.25]")
MIXED = ("dataset.augment.cutout=3", "dataset.augment.mixup=0.3", "dataset.augment.cutmix=1")
Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("grey") / "run"
    shown = ("diagnostics=true", "dataset.num_test=100")
    run(tiny(*GREY, *MIXED, "epochs=null", "steps=10", "model.width=1", *shown), directory=directory)
    return directory


def first_convolution(directory: Path) -> torch.Tensor:
    weights = read_checkpoint(directory / "checkpoints/last.pt")["state"]["model"]["conv1.weight"]
    assert isinstance(weights, torch.Tensor)
    return weights


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_it_trains_alike_with_either_kernels(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert first_convolution(trained).shape == (16, 1, 3, 3)
    for kernels in ("plain", "fused"):
        config = tiny(
            *GREY, *MIXED, "epochs=null", "steps=1", "schedule.warmup=0", "model.width=1", f"kernels={kernels}"
        )
        run(config, directory=tmp_path / kernels)
    plain, fused = (first_convolution(tmp_path / kernels) for kernels in ("plain", "fused"))
    torch.testing.assert_close(plain, fused, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [28, 33, 224])
def test_sizes(size: int, tiny: Tiny, tmp_path: Path) -> None:
    small = ("dataset.num_train=8", "dataset.num_test=4", "batch_size=4", "model.width=0.25", "kernels=auto")
    summary = run(tiny(*GREY, *small, f"dataset.image_size={size}", "epochs=null", "steps=2"), directory=tmp_path)
    assert summary.last["test"].count == 4


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(
    tiny: Tiny, tmp_path: Path, cut_back: Callable[..., Path], assert_same: Callable[[Any, Any], None]
) -> None:
    config = tiny(*GREY, *MIXED, "epochs=null", "steps=10", "model.width=1", "checkpoint.every=5steps")
    run(config, directory=tmp_path / "straight")
    run(config, directory=cut_back(tmp_path / "straight", tmp_path / "resumed", step=5))
    ends = [read_checkpoint(tmp_path / name / "checkpoints/last.pt")["state"] for name in ("straight", "resumed")]
    assert_same(*ends)
    with pytest.raises(ConfigError, match=r"dataset\.channels: saved 1, requested 3"):
        run(tiny(*MIXED, "epochs=null", "steps=10", "model.width=1"), directory=tmp_path / "resumed")


@pytest.mark.slow
def test_a_run_of_0_2_0_which_had_no_such_key_goes_on(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny("epochs=null", "steps=4"), directory=tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").glob("*.pt"):
        content = read_checkpoint(path)
        del content["config"]["dataset"]["channels"]
        write_checkpoint(path, content)
    saved = (tmp_path / "run/config.yaml").read_text()
    assert "  channels: 3\n" in saved
    (tmp_path / "run/config.yaml").write_text(saved.replace("  channels: 3\n", ""))
    with caplog.at_level("INFO"):
        run(tiny("epochs=null", "steps=6"), directory=tmp_path / "run")
        run(tiny("epochs=null", "steps=7"), directory=tmp_path / "run")
    assert "channels:" not in caplog.text, "nothing has changed"
    assert "corrupt" not in caplog.text
    assert "resuming from" in caplog.text
    assert load(tmp_path / "run", device="cpu").spec.channels == 3
    with pytest.raises(ConfigError, match=r"dataset\.channels: saved 3, requested 1"):
        run(tiny(*GREY, "epochs=null", "steps=8"), directory=tmp_path / "run")


def test_tensorboard_shows_grey_images(trained: Path, events: Callable[[Path], EventAccumulator]) -> None:
    """As they go in, and the mistakes; the graph too, which takes such an image."""
    found = events(trained)
    shown = {tag: found.Images(tag)[0].encoded_image_string for tag in found.Tags()["images"]}
    for tag in ("augmented training images", "test/worst mistakes"):
        pixels = np.asarray(Image.open(io.BytesIO(shown[tag])).convert("RGB")).astype(int)
        assert np.ptp(pixels, axis=-1).max() == 0, tag
        assert pixels.max() > 100
    assert found.Tags()["graph"]


def test_photographs_are_made_grey_for_it(trained: Path, tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    classifier = load(trained, device="cpu")
    assert classifier.spec.channels == 1
    colour, grey, again = classifier.predict([tmp_path / "photo.png", np.asarray(photo.convert("L")), photo])
    assert colour.probabilities == grey.probabilities == again.probabilities


def test_grey_images_are_the_luma_of_colours(tiny: Tiny) -> None:
    colour, grey = (load_dataset(tiny(*more).dataset, seed=0).test.images.numpy() for more in ((), GREY))
    assert (colour.shape, grey.shape) == ((50, 16, 16, 3), (50, 16, 16, 1))
    assert np.array_equal(grey[7, ..., 0], np.asarray(Image.fromarray(colour[7]).convert("L")))


@pytest.mark.slow
def test_weights_for_colours_begin_a_grey_run_and_the_other_way_round(
    trained: Path, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    length = ("epochs=null", "steps=1", "model.width=1", "checkpoint.keep=9")
    with caplog.at_level("INFO"):
        run(tiny(*length, f"init_from={trained}"), directory=tmp_path / "colour")
        run(tiny(*GREY, *length, f"init_from={tmp_path / 'colour'}"), directory=tmp_path / "grey")
    assert "conv1 divided among three input channels" in caplog.text
    assert "conv1 summed over its three input channels" in caplog.text
    start = {
        name: read_checkpoint(tmp_path / name / "checkpoints/step-00000000.pt")["state"]["model"]["conv1.weight"]
        for name in ("colour", "grey")
    }
    source = first_convolution(trained)
    torch.testing.assert_close(start["colour"].sum(1, keepdim=True), source)
    assert torch.equal(start["colour"][:, 0], start["colour"][:, 2])
    torch.testing.assert_close(start["grey"], first_convolution(tmp_path / "colour").sum(1, keepdim=True))


@pytest.mark.slow
def test_the_table_of_a_network_has_its_channels(tiny_overrides: tuple[str, ...], shell: Any) -> None:
    code, out, err = shell.call(*tiny_overrides, *GREY, "model.width=1", "summary=true")
    assert code == 0, err
    assert "images 1x16x16" in out
    first = next(line for line in out.splitlines() if line.startswith("conv1"))
    assert first.split()[3] == "176", "16 x 1 x 3 x 3 weights, and 32 of the norm"
