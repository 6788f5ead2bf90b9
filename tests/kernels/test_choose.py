"""Which operations a run computes with, and the reason that its header gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from resnet_train.data import augment
from resnet_train.errors import ConfigError
from resnet_train.kernels import cpu, cuda_batch
from resnet_train.kernels.choose import PLAIN, Backend, choose_backend
from resnet_train.models.resnet import CifarResNet


def chosen(name: str, device: str = "cpu", **others: Any) -> Backend:
    usual: dict[str, Any] = {"activation": "relu", "precision": "fp32", "compiled": False, "channels_last": True}
    return choose_backend(name, device=torch.device(device), **(usual | others))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("name", "others", "expected"),
    [
        ("auto", {}, "fused: batch norm, addition and ReLU in one, "),
        ("fused", {}, "fused: batch norm, addition and ReLU in one, "),
        ("plain", {}, "plain: asked for"),
        ("plain", {"compiled": True}, "plain: asked for"),
        ("auto", {"compiled": True}, "plain: torch.compile makes its own"),
        ("auto", {"device": "cuda"}, "plain: without a graph the fused ones take longer to launch"),
        ("auto", {"device": "cuda", "graph": True, "compiled": True}, "plain: torch.compile makes its own"),
        ("auto", {"device": "mps"}, "plain: the fused ones are for the CPU and CUDA, this runs on mps"),
        ("auto", {"channels_last": False}, "plain: the fused ones need channels_last"),
        ("auto", {"activation": "tanh"}, "plain: the fused ones are for ReLU, this network has tanh"),
    ],
    ids=str,
)
def test_choice(name: str, others: dict[str, Any], expected: str) -> None:
    backend = chosen(name, **others)
    assert f"{backend.name}: {backend.reason}".startswith(expected)


@pytest.mark.parametrize("name", ["fused", "auto"])
def test_fused_on_cuda_is_triton(name: str) -> None:
    pytest.importorskip("triton")
    backend = chosen(name, "cuda", graph=name == "auto")
    assert f"{backend.name}: {backend.reason}".startswith("fused: batch norm, addition and ReLU in one, by Triton ")
    assert backend.crop_flip_normalise is cuda_batch.crop_flip_normalise


@pytest.mark.parametrize("name", ["fused", "experimental_amx"])
@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"activation": "tanh"}, "the fused ones are for ReLU, this network has tanh"),
        ({"channels_last": False}, "the fused ones need channels_last"),
        ({"compiled": True}, "torch.compile makes its own"),
    ],
    ids=str,
)
def test_what_is_asked_for_by_name_and_cannot_be_had(name: str, others: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as raised:
        chosen(name, **others)
    assert str(raised.value) == f"kernels: expected to find what kernels={name} needs, but {why}; try kernels=auto"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_header_says_what_multiplies(precision: str) -> None:
    by_winograd = precision == "fp32" or not cpu.multiplies_bf16()
    assert ("3x3 convolutions by Winograd's algorithm" in chosen("fused", precision=precision).reason) == by_winograd


@pytest.mark.usefixtures("compiler")
def test_a_backend_converts_and_makes_batches() -> None:
    model = CifarResNet(8)
    PLAIN.convert(model)
    assert type(model.layer1[0].conv1) is nn.Conv2d
    backend = chosen("fused")
    backend.convert(model)
    assert type(model.layer1[0].conv1) is cpu.Conv2d
    assert backend.crop_flip_normalise is cpu.crop_flip_normalise
    assert PLAIN.crop_flip_normalise is augment.crop_flip_normalise
