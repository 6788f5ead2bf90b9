"""A configuration's model becomes that network, its weights drawn from the seed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from resnet_train.config.model import ModelConfig
from resnet_train.config.run import Config
from resnet_train.models.build import build_model
from resnet_train.models.count import channels_of, layers
from resnet_train.models.preact import PreActBottleneck
from resnet_train.models.recognise import recognise
from resnet_train.models.resnet import BasicBlock, CifarResNet, PadShortcut, ResNet

Compose = Callable[..., Config]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "expected"),
    [("resnet20", CifarResNet), ("plain20", CifarResNet), ("resnet18", ResNet), ("plain18", ResNet)],
)
def test_each_family(compose: Compose, option: str, expected: type[nn.Module]) -> None:
    model = build_model(compose(f"model={option}").model, num_classes=7, seed=0)
    assert type(model) is expected
    assert model.fc.out_features == 7
    has_shortcuts = any(isinstance(block, BasicBlock) and block.downsample for block in model.modules())
    assert has_shortcuts == option.startswith("resnet")


def test_every_option_reaches_the_network(compose: Compose) -> None:
    words = ("width=0.25", "stem=imagenet", "shortcut=A", "preactivation=true", "dropout=0.25", "activation=tanh")
    more = ("conv_bias=true", "zero_init_residual=true", "init=glorot")
    config = compose("model=resnet50", *(f"model.{word}" for word in (*words, *more))).model
    model = build_model(config, num_classes=10, seed=0)
    block = next(module for module in model.modules() if isinstance(module, PreActBottleneck))
    assert model.conv1.kernel_size == (7, 7)
    assert model.conv1.out_channels == 16
    assert model.dropout.p == 0.25
    assert type(model.relu) is type(block.relu) is nn.Tanh
    assert any(isinstance(module, PadShortcut) for module in model.modules())
    assert block.conv3.bias is not None
    assert block.conv3.weight.count_nonzero() == 0
    assert model.conv1.weight.abs().max() <= (6 / ((3 + 16) * 49)) ** 0.5


@pytest.mark.slow
def test_the_seed_alone_decides(compose: Compose) -> None:
    config = compose().model
    torch.manual_seed(1)
    first = build_model(config, num_classes=10, seed=3).state_dict()
    torch.manual_seed(2)
    same, other = (build_model(config, num_classes=10, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout(compose: Compose, channels_last: bool) -> None:
    model = build_model(compose().model, num_classes=10, seed=0, channels_last=channels_last)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_family_without_a_network(compose: Compose) -> None:
    shared: dict[str, Any] = vars(replace(compose().model))
    with pytest.raises(TypeError, match=r"^no network for ModelConfig$"):
        build_model(ModelConfig(**shared), num_classes=10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", ["model=resnet20", "model=resnet18", "model=resnet18 model.stem=imagenet"])
def test_of_one_channel(overrides: str, compose: Callable[..., Config]) -> None:
    """Only the first convolution is another; the network is recognised by its shapes."""
    config = compose(*overrides.split()).model
    grey, colour = (build_model(config, num_classes=10, seed=0, channels=channels) for channels in (1, 3))
    assert grey(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    differ = [name for name, tensor in grey.state_dict().items() if tensor.shape != colour.state_dict()[name].shape]
    assert differ == ["conv1.weight"]
    assert channels_of(grey) == 1
    found = recognise({name: tuple(tensor.shape) for name, tensor in grey.state_dict().items()})
    assert found is not None
    assert (found.channels, found.depth) == (1, config.depth)
    first = layers(grey, 28)[0]
    assert first.multiply_adds * 3 == layers(colour, 28)[0].multiply_adds
