"""Exported files: what they compute, what they say, and what is left when they cannot be written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from torch import nn

from resnet_train import load
from resnet_train.config.run import Config
from resnet_train.config.size import image_size
from resnet_train.data.augment import normalise
from resnet_train.data.dataset import load_dataset
from resnet_train.errors import RunError
from resnet_train.inference.check import compare, own_images
from resnet_train.inference.classifier import TorchNetwork
from resnet_train.inference.export import PLAN, Exported, export, exported_spec, network_of
from resnet_train.inference.exported import load_exported, quiet
from resnet_train.inference.trained import Trained, read_trained
from resnet_train.models.build import build_model
from resnet_train.runs.weights import digest_of, read_weights
from resnet_train.train import run

Files = Callable[..., Exported]
KINDS = ("onnx", "pt2", "safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_answers_as_its_run(kind: str, exported: Files, small: Trained, small_run: Path) -> None:
    images = own_images(small)
    file, original = load(exported(kind).path), load(small_run)
    assert (file.classes, file.image_size, file.spec.accuracy) == (original.classes, 16, original.spec.accuracy)
    found, expected = (one.logits(images).double().softmax(1) for one in (file, original))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.argmax(1).equal(expected.argmax(1))
    assert len(found.argmax(1).unique()) > 1
    assert [one.label for one in file.predict(list(images[:3].numpy()))] == [
        one.label for one in original.predict(list(images[:3].numpy()))
    ]
    check = exported(kind).check
    assert check.images == 20
    assert check.largest_difference < 1e-6


@pytest.mark.slow
def test_raw_files_take_floats_and_give_logits(exported: Files, small: Trained, small_run: Path) -> None:
    images, spec = own_images(small), small.spec()
    given = normalise(images, torch.tensor(spec.mean), torch.tensor(spec.std)).contiguous()
    expected = load(small_run).logits(images)
    session = onnxruntime.InferenceSession(exported("onnx", raw=True).path)
    for size in (1, 2, 17):
        (logits,) = session.run(["logits"], {"images": given[:size].numpy()})
        assert torch.allclose(torch.from_numpy(logits), expected[:size], atol=1e-5)
    module = torch.export.load(exported("pt2", raw=True).path).module()
    assert torch.allclose(module(given), expected, atol=1e-5)
    for kind in ("onnx", "pt2"):
        file = exported(kind, raw=True)
        assert file.spec.raw
        assert torch.allclose(load(file.path).logits(images), expected, atol=1e-5)


def test_onnx_as_its_own_tools_see_it(exported: Files, small: Trained) -> None:
    file = exported("onnx")
    model = onnx.load(file.path)
    onnx.checker.check_model(model, full_check=True)
    metadata = {one.key: one.value for one in model.metadata_props}
    assert_says_what_it_is(metadata, small)
    session = onnxruntime.InferenceSession(file.path)
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 16, 16, 3])
    assert (output.name, output.type, output.shape) == ("probabilities", "tensor(float)", ["batch", 10])
    (probabilities,) = session.run(None, {"images": np.zeros((5, 16, 16, 3), np.uint8)})
    assert np.allclose(probabilities.sum(1), 1)


@pytest.mark.slow
def test_pt2_as_its_own_tools_see_it(exported: Files, small: Trained) -> None:
    extra = {"resnet-train.json": ""}
    program = torch.export.load(exported("pt2").path, extra_files=extra)
    assert_says_what_it_is(json.loads(extra["resnet-train.json"]), small)
    assert program.module()(torch.zeros(3, 16, 16, 3, dtype=torch.uint8)).shape == (3, 10)
    for raw in (False, True):  # it can be moved to a GPU
        graph = torch.export.load(exported("pt2", raw=raw).path).graph
        assert not [node for node in graph.nodes if "cpu" in f"{node.args} {node.kwargs}"]


def test_safetensors_as_its_own_tools_see_it(exported: Files, small: Trained) -> None:
    path = exported("safetensors").path
    with safetensors.safe_open(path, framework="np") as opened:
        metadata, names = opened.metadata(), set(opened.keys())
    assert metadata["format"] == "pt"
    assert_says_what_it_is(metadata, small)
    assert names == set(small.weights)
    assert digest_of(read_weights(path)) == metadata["weights_sha256"]  # init_from takes it too


def assert_says_what_it_is(metadata: dict[str, str], small: Trained) -> None:
    assert json.loads(metadata["classes"]) == [f"pattern {number}" for number in range(10)]
    assert json.loads(metadata["mean"]) == list(small.config.dataset.mean)
    assert json.loads(metadata["std"]) == list(small.config.dataset.std)
    assert json.loads(metadata["image_size"]) == 16
    assert small.summary is not None
    assert json.loads(metadata["accuracy"]) == small.summary.result
    assert metadata["resize"].startswith("upright, the largest square")
    assert metadata["command"] == "resnet-train dataset=synthetic +dataset.root=FOLDER"
    assert metadata["weights_sha256"] == digest_of(small.weights)
    assert metadata["input"].startswith(("uint8 (N, 16, 16, 3)", "float32 (N, 3, 16, 16)"))
    assert metadata["output"].startswith("float32 (N, 10)")


def test_the_weights_are_those_that_the_run_evaluates(small: Trained, small_run: Path, exported: Files) -> None:
    state = torch.load(small_run / "checkpoints/last.pt", weights_only=True)["state"]
    weights = read_weights(exported("safetensors").path)
    assert weights.keys() == state["ema"].keys()
    assert all(weights[name].equal(state["ema"][name]) for name in weights)
    assert not weights["conv1.weight"].equal(state["model"]["conv1.weight"])
    assert small.config.model.dropout == 0.2


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file; of an archive, of its members."""
    if path.suffix != ".pt2":
        yield path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        yield from (archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_tells_where_it_was_made(kind: str, exported: Files, small_run: Path, root: Path) -> None:
    file = exported(kind)
    private = (small_run, file.path.parent, root, Path.home(), Path(torch.__file__).parent)
    for content in (*contents(file.path), file.card.read_bytes()):
        assert not [path for path in private if str(path).encode() in content and len(str(path)) > 5]
        assert b".py" not in content.replace(b"import", b"")
    assert sorted(path.name for path in file.path.parent.iterdir()) == sorted(["README.md", f"model.{kind}"])
    assert file.path.stat().st_mode == file.card.stat().st_mode


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_network_that_diverged_is_not_exported(small: Trained, tmp_path: Path) -> None:
    """What was there stays; folders that were made for it go."""
    broken = {name: value * float("nan") if name == "fc.bias" else value for name, value in small.weights.items()}
    diverged = replace(small, weights=broken)
    path, card = tmp_path / "model.safetensors", tmp_path / "README.md"
    path.write_text("older"), card.write_text("its card")
    for place in (tmp_path, tmp_path / "a/b"):
        with pytest.raises(RunError, match="got NaN: its training diverged"):
            export(diverged, place / path.name, card=place / card.name, images=own_images(small))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["README.md", "model.safetensors"]
    assert (path.read_text(), card.read_text()) == ("older", "its card")


def test_an_export_takes_the_place_of_an_older_one(small: Trained, tmp_path: Path) -> None:
    path, card = tmp_path / "model.safetensors", tmp_path / "model.md"
    path.write_text("older"), card.write_text("older")
    export(small, path, card=card, images=own_images(small))
    assert load(path).classes == small.classes
    assert card.read_text().startswith("---\nlibrary_name: resnet-train\n")


# ------------------------------------------------------------------------------------------------ all kinds of networks

NETWORKS = {
    "resnet20, option A": ("model=resnet20", "model.shortcut=A"),
    "resnet20, option B": ("model=resnet20", "model.shortcut=B"),
    "resnet18": ("model=resnet18",),
    "resnet50, imagenet stem, 64 pixels": ("model=resnet50", "model.stem=imagenet", "dataset.image_size=64"),
    "preactivation, option A, 33 pixels": ("model.preactivation=true", "model.shortcut=A", "dataset.image_size=33"),
    "preactivation, resnet50, 28 pixels": (
        *("model=resnet50", "model.width=0.25", "model.preactivation=true", "dataset.image_size=28"),
    ),
    "plain, tanh, biases, dropout, 17 pixels": (
        *("model.residual=false", "model.activation=tanh", "model.conv_bias=true"),
        *("model.dropout=0.5", "dataset.image_size=17"),
    ),
    "resnet18, imagenet stem, option A, sigmoid, 31 pixels": (
        *("model=resnet18", "model.stem=imagenet", "model.shortcut=A", "model.activation=sigmoid"),
        "dataset.image_size=31",
    ),
}


@pytest.fixture(
    params=[
        pytest.param(words, id=name, marks=[pytest.mark.thorough] * (number % 2))
        for number, (name, words) in enumerate(NETWORKS.items())
    ]
)
def any_network(request: pytest.FixtureRequest, compose: Callable[..., Config]) -> Trained:
    """A network whose norms have statistics that matter, as after training."""
    config = compose(
        "dataset=synthetic", "dataset.num_train=64", "batch_size=64", "dataset.num_test=40", *request.param
    )
    model = build_model(config.model, num_classes=10, seed=1)
    draws = torch.Generator().manual_seed(1)
    images = load_dataset(config.dataset, seed=0).train.images
    dataset = config.dataset
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draws)
            nn.init.normal_(module.bias, std=0.2, generator=draws)
            module.momentum = None  # the mean over all batches
    model(normalise(images, torch.tensor(dataset.mean), torch.tensor(dataset.std)))
    classes = tuple(f"pattern {number}" for number in range(10))
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    return Trained(Path("last.pt"), None, "last", config, classes, weights, 0, "fp32", None, None)


@pytest.mark.slow
def test_every_kind_of_network(any_network: Trained, tmp_path: Path) -> None:
    images = own_images(any_network)
    reference = TorchNetwork(network_of(any_network), exported_spec(any_network, raw=False), PLAN)
    expected = reference(images)
    assert expected.softmax(1).amax() < 0.999  # or nothing would be seen of differences
    assert expected.std(0).min() > 1e-4  # it looks at the images
    size = image_size(any_network.config.dataset)
    for kind in KINDS:
        path = tmp_path / f"model.{kind}"
        export(any_network, path, card=path.with_suffix(".md"), images=images)
        found = load_exported(path)
        assert found.image_size == size
        assert (found.logits(images).log_softmax(1) - expected.log_softmax(1)).abs().max() < 1e-4, path


@pytest.mark.slow
def test_a_second_opinion(small: Trained, exported: Files, tmp_path: Path) -> None:
    """PyTorch's older exporter, which has nothing in common with the newer one, gives the same numbers."""
    images, spec = own_images(small), small.spec()
    given = normalise(images, torch.tensor(spec.mean), torch.tensor(spec.std)).contiguous()
    path = tmp_path / "older.onnx"
    with quiet():
        torch.onnx.export(
            network_of(small),
            (given[:2],),
            path,
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    for size in (1, 2, 17, len(images)):
        older, newer = (
            onnxruntime.InferenceSession(one).run(["logits"], {"images": given[:size].numpy()})[0]
            for one in (path, exported("onnx", raw=True).path)
        )
        assert np.abs(older - newer).max() < 1e-5


@pytest.mark.slow
def test_all_test_images_of_cifar10(compose: Callable[..., Config], cifar10_root: Path, tmp_path: Path) -> None:
    """Not twenty of them: ten thousand."""
    overrides = ("experiment=quick", "model.depth=8", "epochs=null", "steps=50", "schedule.warmup=0")
    config = compose(*overrides, f"dataset.root={cifar10_root}", "precision=fp32", "device=cpu")
    run(config, directory=tmp_path / "run")
    trained = read_trained(tmp_path / "run")
    images = own_images(trained)
    assert len(images) == 10_000
    original = TorchNetwork(network_of(trained), trained.spec(), PLAN)
    for kind in ("onnx", "pt2"):
        path = tmp_path / f"model.{kind}"
        export(trained, path, card=path.with_suffix(".md"), images=images)
        check = compare(load_exported(path, device="cpu").network, original, images.split(500))
        assert check.images == 10_000
        assert check.largest_difference < 1e-5
