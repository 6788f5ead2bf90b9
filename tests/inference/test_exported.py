"""Files that are no export: cut, empty, of somebody else, with metadata that lie. One line each, nothing else."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper

from resnet_train import load
from resnet_train.errors import ConfigError
from resnet_train.inference.export import Exported
from resnet_train.inference.spec import KEY, RESIZE

Files = Callable[..., Exported]
KINDS = ("onnx", "pt2", "safetensors")
GOOD: dict[str, Any] = {
    "format": 1,
    "name": "small",
    "model": {},
    "dataset": "synthetic",
    "classes": ["a", "b"],
    "image_size": 4,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "resize": RESIZE,
}


def refused(path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What `load` says of a file; it says nothing elsewhere."""
    capfd.readouterr()
    with pytest.raises(ConfigError) as error:
        load(path, device="cpu")
    assert capfd.readouterr() == ("", "")
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_cut_files(kind: str, exported: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = exported(kind).path.read_bytes()
    path = tmp_path / f"model.{kind}"
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "expected a file that resnet-export wrote, got one" in refused(path, capfd)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_others(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"model.{kind}"
    for content in (b"what a day", bytes(1000), json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        assert "expected a file that resnet-export wrote, got one that cannot be read: " in refused(path, capfd)


def test_graphs_and_weights_of_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Sound files, but of other programs."""
    model = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(model, tmp_path / "model.pt2")
    save_onnx(tmp_path / "model.onnx", {})
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("a/b", "c")
    for path in tmp_path.iterdir():
        assert "expected a file that resnet-export wrote, got one without its metadata" in refused(path, capfd)


def save_onnx(path: Path, metadata: dict[str, str], *, outputs: int = 2, kind: int = TensorProto.UINT8) -> None:
    """A graph that gives zeros, for images of 4x4."""
    weight = helper.make_tensor("zeros", TensorProto.FLOAT, (48, outputs), [0.0] * 48 * outputs)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "zeros"], ["probabilities"]),
    ]
    given = helper.make_tensor_value_info("images", kind, ("batch", 4, 4, 3))
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("batch", outputs))
    graph = helper.make_graph(nodes, "graph", [given], [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


def test_a_graph_that_is_not_what_its_metadata_say(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, metadata = tmp_path / "model.onnx", {KEY: json.dumps(GOOD)}
    save_onnx(path, metadata)
    assert load(path).classes == ("a", "b")
    save_onnx(path, metadata, outputs=3)
    assert refused(path, capfd).startswith("expected an output (1, 2) for one image, got (1, 3); the metadata are of")
    save_onnx(path, metadata, kind=TensorProto.DOUBLE)
    assert "got one that cannot be read" in refused(path, capfd)
    save_onnx(path, {KEY: json.dumps(GOOD | {"image_size": 5})})
    assert "got one that cannot be read" in refused(path, capfd)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": "ab", "image_size": "4"},
        {"classes": ["a"]},
        {"classes": ["a", 2]},
        {"classes": None},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, True]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.5, 0.0, 0.5]},
        {"std": [0.5, -1, 0.5]},
        {"std": {"r": 1}},
        {"image_size": 10**9},
        {"image_size": 0},
        {"image_size": True},
        {"step": "7"},
        {"raw": "yes"},
        {"accuracy": 1.5},
        {"accuracy": "good"},
        {"weights_sha256": 5},
        {"command": ["rm"]},
        {"model": "resnet20"},
        {"surprise": 1},
        {"name": None},
    ],
    ids=str,
)
def test_metadata_of_other_types(changed: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    save_onnx(path, {KEY: json.dumps(GOOD | changed)})
    assert refused(path, capfd) == "its metadata are corrupt; export it again"


@pytest.mark.parametrize("text", ["", "[]", "5", "null", "{}", '"a"', "{", "[" * 100_000])
def test_metadata_that_are_none(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata={KEY: text})
    assert refused(path, capfd) == "its metadata are corrupt; export it again"


def test_metadata_of_another_version(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    save_onnx(path, {KEY: json.dumps(GOOD | {"format": 2})})
    assert refused(path, capfd) == "its metadata are of another version of resnet-train; export it again"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0.5}, "its weights do not fit the network that it describes; export it again"),
        ({"width": 64.0}, "its weights do not fit the network that it describes; export it again"),  # 5 GB
        ({"depth": 10_004}, "its weights do not fit the network that it describes; export it again"),  # minutes
        ({"depth": 9}, "its metadata describe no network of this version; export it again"),
        ({"depth": "8"}, "its metadata describe no network of this version; export it again"),
        ({"depth": [8]}, "its metadata describe no network of this version; export it again"),
        ({"width": "wide"}, "its metadata describe no network of this version; export it again"),
        ({"stem": "cifar"}, "its metadata describe no network of this version; export it again"),
        ({"legs": 4}, "its metadata describe no network of this version; export it again"),
    ],
    ids=str,
)
def test_weights_of_another_network(
    changed: dict[str, Any], message: str, exported: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    with safetensors.safe_open(exported("safetensors").path, framework="pt") as opened:
        plain = json.loads(opened.metadata()[KEY])
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    plain["model"] |= changed
    safetensors.torch.save_file(weights, path, metadata={KEY: json.dumps(plain)})
    assert refused(path, capfd) == message


def test_weights_in_half_precision_compute_in_fp32(exported: Files, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    with safetensors.safe_open(exported("safetensors").path, framework="pt") as opened:
        halves = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        halves = {name: value.half() if value.is_floating_point() else value for name, value in halves.items()}
        safetensors.torch.save_file(halves, path, metadata=opened.metadata())
    image = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    expected = load(exported("safetensors").path).logits(image)
    assert torch.allclose(load(path, device="cpu").logits(image), expected, atol=0.05)


@pytest.mark.slow
def test_metadata_of_a_pt2(exported: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are looked at before PyTorch reads anything else."""
    path = tmp_path / "model.pt2"
    for text, message in (
        ("[]", "got one that cannot be read: its metadata are no dictionary"),
        ("{", "got one that cannot be read: "),
        ("{}", "got one without its metadata"),
        (json.dumps({KEY: 5}), "its metadata are corrupt"),
        (json.dumps({KEY: json.dumps(GOOD)}), "got one that cannot be read: "),  # images of another size
    ):
        with zipfile.ZipFile(exported("pt2").path) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
            for member in old.infolist():
                is_ours = member.filename.endswith("/extra/resnet-train.json")
                new.writestr(member.filename, text if is_ours else old.read(member))
        assert message in refused(path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes(kind: str, exported: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever a file is corrupt: either it is refused, or it still is a classifier of these classes."""
    path, draws = tmp_path / f"model.{kind}", random.Random(0)
    shutil.copy(exported(kind).path, path)
    content = path.read_bytes()
    for _ in range(60):
        place = draws.randrange(min(len(content), 20_000) if draws.random() < 0.5 else len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draws.randrange(8)]) + content[place + 1 :])
        capfd.readouterr()
        try:
            classes = len(load(path, device="cpu").classes)
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert classes == 10
        assert capfd.readouterr() == ("", "")
