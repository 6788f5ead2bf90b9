"""Weights from files of whatever origin, for ``init_from``; and files that nobody should have written."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from resnet_train.errors import ConfigError
from resnet_train.models.resnet import OPTION_A, CifarResNet
from resnet_train.runs.checkpoint import write_checkpoint
from resnet_train.runs.checkpoint_file import FORMAT
from resnet_train.runs.weights import read_weights, read_weights_and_classes

EXAMPLES = int(os.environ.get("RESNET_TRAIN_EXAMPLES", "25"))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Of a network of this project."""
    torch.manual_seed(0)
    return CifarResNet(8, OPTION_A).state_dict()


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def tensors(content: Any, path: Path) -> None:
    safetensors.torch.save_file(content, path, {"format": "pt"})


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


WRAPPINGS: dict[str, tuple[Callable[[Any, Path], None], Callable[[dict[str, torch.Tensor]], Any]]] = {
    "a state dict": (torch.save, lambda weights: weights),
    "an old file": (legacy, lambda weights: weights),
    "safetensors": (tensors, lambda weights: weights),
    "parameters": (torch.save, lambda weights: {n: nn.Parameter(v, requires_grad=False) for n, v in weights.items()}),
    "akamaster's": (legacy, lambda weights: {"state_dict": prefixed(weights, "module."), "best_prec1": 91.7}),
    "kuangliu's": (torch.save, lambda weights: {"net": prefixed(weights, "module."), "acc": 93.02, "epoch": 1}),
    "with an optimizer": (torch.save, lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3}),
    "model_state_dict": (torch.save, lambda weights: {"model_state_dict": weights, "loss": 0.5}),
    "compiled": (torch.save, lambda weights: prefixed(weights, "_orig_mod.")),
    "compiled and distributed": (tensors, lambda weights: prefixed(weights, "_orig_mod.module.")),
    "Lightning's": (torch.save, lambda weights: {"state_dict": prefixed(weights, "model."), "epoch": 3}),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_usual_wrappings(tmp_path: Path, weights: dict[str, torch.Tensor], wrapping: str) -> None:
    write, wrap = WRAPPINGS[wrapping]
    write(wrap(weights), tmp_path / "weights")
    found = read_weights(tmp_path / "weights")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_names_of_other_projects_are_those_of_torchvision(tmp_path: Path) -> None:
    names = {
        "conv1.weight": "conv1.weight",
        "layer1.0.bn2.running_mean": "layer1.0.bn2.running_mean",
        "layer2.0.shortcut.0.weight": "layer2.0.downsample.0.weight",
        "layer2.0.shortcut.1.num_batches_tracked": "layer2.0.downsample.1.num_batches_tracked",
        "linear.weight": "fc.weight",
        "linear.bias": "fc.bias",
    }
    torch.save({"net": {f"module.{name}": torch.ones(1) for name in names}}, tmp_path / "weights")
    assert list(read_weights(tmp_path / "weights")) == list(names.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, r"expected weights by name in .*, got dict of other things"),
        ({1: torch.ones(1)}, r"expected weights by name in .*, got dict of other things"),
        ([torch.ones(1)], r"expected weights by name in .*, got list of other things"),
        ({"state_dict": {"a": "\x1b[2J"}}, r"expected weights by name in .*, got dict of other things"),
        (
            nn.Linear(1, 1),
            r"cannot read .*: it holds more than tensors and plain values \(torch\.nn\.modules\.linear\.",
        ),
    ],
)
def test_what_is_no_weights(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "weights")
    with pytest.raises(ConfigError, match=f"^weights: {message}"):
        read_weights(tmp_path / "weights", key="weights")


# -------------------------------------------------------------------------------------------------------- broken files


def pickles(drawn: random.Random) -> bytes:
    """Opcodes at random, some with arguments that make sense."""
    names = [b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]
    pieces = [*names, b"(", b"t", b"}", b"]", b")", b"R", b"Q", b"b", b"s", b"u", b"a", b"e", b"q\0", b"h\0", b"K\1"]
    pieces += [b"X\1\0\0\0a", b"N", b"\x85", b"\x86", b"\x87", struct.pack("<cq", b"\x8a", drawn.getrandbits(62))]
    return b"\x80\x02" + b"".join(drawn.choices(pieces, k=drawn.randrange(40))) + b"."


def broken(whole: bytes, drawn: random.Random) -> bytes:
    """One of many ways in which a file can be other than it was."""
    at, other = drawn.randrange(len(whole)), drawn.randrange(len(whole))
    first, last = min(at, other), max(at, other)
    head = drawn.randrange(min(len(whole), 3000))
    match drawn.randrange(9):
        case 0:
            return whole[:at]
        case 1:
            return whole[:at] + bytes([drawn.randrange(256)]) + whole[at + 1 :]
        case 2:
            return whole[:first] + whole[last:]
        case 3:
            return whole[:at] + drawn.randbytes(drawn.randrange(1, 9)) + whole[at:]
        case 4:  # the beginning, where pickles and headers stand
            return whole[:head] + drawn.randbytes(drawn.randrange(1, 9)) + whole[head + 1 :]
        case 5:
            return whole[:head] + struct.pack("<q", drawn.choice([-1, 2**31, 2**62, 0])) + whole[head + 8 :]
        case 6:
            return drawn.choice([b"PK\3\4", b"\x80\x02", struct.pack("<Q", 30) + b"{", b""]) + whole[at:]
        case 7:
            return pickles(drawn)
        case _:
            text = drawn.choice([b"{}", b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}', b'{"a":1}'])
            return struct.pack("<Q", len(text)) + text + drawn.randbytes(drawn.randrange(9))


def test_malformed_files_are_refused_in_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Changes of valid files; each is read as weights, or refused for a reason. More with RESNET_TRAIN_EXAMPLES."""
    small = {name: value for name, value in weights.items() if "layer" not in name}
    wholes = []
    for number, (write, wrap) in enumerate(WRAPPINGS.values()):
        write(wrap(small), tmp_path / f"whole-{number}")
        wholes.append((tmp_path / f"whole-{number}").read_bytes())
    path = tmp_path / "broken"
    refused = 0
    for number in range(20 * EXAMPLES):
        drawn = random.Random(number)
        path.write_bytes(broken(drawn.choice(wholes), drawn))
        try:
            found = read_weights(path)
        except ConfigError as error:
            assert str(error).startswith("init_from: "), number
            assert str(error).isprintable() and len(str(error)) < 1000, number
            refused += 1
        else:
            assert all(isinstance(value, torch.Tensor) for value in found.values()), number
    assert refused > 10 * EXAMPLES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "it is a pointer of Git LFS, .*git lfs pull.*"),
        (b"\n<!DOCTYPE html><html>", "it is a web page; copy or download it again, or give another file"),
        (b"<html lang='en'>", "it is a web page; copy or download it again, or give another file"),
        (b"", "it is empty; copy or download it again, or give another file"),
    ],
)
def test_what_downloads_leave_in_the_place_of_weights(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^init_from: cannot read {tmp_path}/model.safetensors: {message}$"):
        read_weights(tmp_path / "model.safetensors")


def test_a_whole_model_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "model.pth")
    with pytest.raises(ConfigError, match=r"; load it where it was written, and save its weights with torch\.save\("):
        read_weights(tmp_path / "model.pth")


def test_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--weights: expected .*, got 'no', which does not exist; look at its name"):
        read_weights(Path("no"), key="--weights")
    with pytest.raises(ConfigError, match=r"which has none; give a run that has checkpoints/last\.pt, or a file"):
        read_weights(tmp_path)


def test_classes_come_with_the_checkpoint_of_a_run(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    content = {"format": FORMAT, "state": {"model": weights, "ema": None}, "classes": ["cat", "dog"]}
    write_checkpoint(tmp_path / "last.pt", content)
    assert read_weights_and_classes(tmp_path / "last.pt")[1] == ["cat", "dog"]
    write_checkpoint(tmp_path / "last.pt", content | {"classes": ["cat", 1]})
    assert read_weights_and_classes(tmp_path / "last.pt")[1] is None
    torch.save({"state_dict": weights, "classes": ["cat", "dog"]}, tmp_path / "other.pt")  # nobody knows what they are
    assert read_weights_and_classes(tmp_path / "other.pt")[1] is None


def test_a_pickle_of_another_kind_is_refused(tmp_path: Path) -> None:
    for content in (pickle.dumps({"a": 1}), pickle.dumps([1] * 100, 0), b"(I1\nI2\nl.", io.BytesIO(b"\x80").read()):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^init_from: cannot read "):
            read_weights(tmp_path / "file")
