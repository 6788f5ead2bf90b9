"""Networks with options, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from resnet_train.models.resnet import Block, CifarResNet, ResNet
from resnet_train.models.variant import OPTION_A, OPTION_B

Network = CifarResNet | ResNet


@pytest.fixture(scope="session")
def build() -> Callable[..., Network]:
    """``build(family, depth, ...)``: options are fields of the variant, or ``stem`` and ``num_classes``."""

    def built(family: type[Network], depth: int, **options: Any) -> Network:
        outer = {name: options.pop(name) for name in ("stem", "num_classes") if name in options}
        variant = replace(OPTION_A if family is CifarResNet else OPTION_B, **options)
        return family(depth, variant, **outer)

    return built


@pytest.fixture(scope="session")
def on_meta(build: Callable[..., Network]) -> Callable[..., Network]:
    """The same without data: only shapes."""

    def built(*arguments: Any, **options: Any) -> Network:
        with torch.device("meta"):
            return build(*arguments, **options)

    return built


@pytest.fixture(
    params=[(CifarResNet, 8, 0.5), (ResNet, 18, 1 / 8), (ResNet, 50, 1 / 16)], ids=["cifar8", "resnet18", "resnet50"]
)
def small(request: pytest.FixtureRequest, build: Callable[..., Network]) -> Callable[..., Network]:
    """``small(...)``: a small network of each kind of block, with options."""
    family, depth, width = request.param
    return partial(build, family, depth, width=width)


@pytest.fixture(scope="session")
def blocks() -> Callable[[nn.Module], list[Any]]:
    """The blocks of a network, in order."""
    return lambda network: [module for module in network.modules() if isinstance(module, Block)]


@pytest.fixture(scope="session")
def convolutions() -> Callable[[nn.Module], list[nn.Conv2d]]:
    """The convolutions of a network, in order of registration."""
    return lambda network: [module for module in network.modules() if isinstance(module, nn.Conv2d)]
