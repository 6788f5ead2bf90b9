"""Pre-activation blocks against figure 4(e) of He et al. 2016, written down once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.preact import PreActBasicBlock, PreActBottleneck
from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.models.variant import Shortcut

Build = Callable[..., CifarResNet | ResNet]
Blocks = Callable[[nn.Module], list[Any]]


def random_images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def activated(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))


def option_a(x: Tensor, planes: int) -> Tensor:
    out = torch.zeros(len(x), planes, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
    first = (planes - x.shape[1]) // 2
    out[:, first : first + x.shape[1]] = x[:, :, ::2, ::2]
    return out


def preactivated(
    x: Tensor, block: PreActBasicBlock | PreActBottleneck, *, stride: int, shortcut: Shortcut | None
) -> Tensor:
    """He et al. 2016, figure 4(e), with the weights of ``block``; ``shortcut=None`` where the shape stays."""
    first = activated(x, block.bn1)
    if isinstance(block, PreActBasicBlock):
        out = F.conv2d(first, block.conv1.weight, stride=stride, padding=1)
        out = F.conv2d(activated(out, block.bn2), block.conv2.weight, padding=1)
    else:
        out = F.conv2d(first, block.conv1.weight)
        out = F.conv2d(activated(out, block.bn2), block.conv2.weight, stride=stride, padding=1)
        out = F.conv2d(activated(out, block.bn3), block.conv3.weight)
    if shortcut == "A":
        return out + option_a(first, out.shape[1])
    if shortcut == "B":
        assert isinstance(block.downsample, nn.Sequential)
        (projection,) = block.downsample  # no norm: the next block has one
        assert isinstance(projection, nn.Conv2d)
        return out + F.conv2d(first, projection.weight, stride=stride)
    return out + x


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_preactivated_network_equals_its_description(build: Build, blocks: Blocks, shortcut: Shortcut) -> None:
    network = build(CifarResNet, 8, preactivation=True, shortcut=shortcut).double()
    images = random_images(2, 3, 16, 16)
    first, second, third = blocks(network)
    x = F.conv2d(images, network.conv1.weight, padding=1)
    x = preactivated(x, first, stride=1, shortcut=None)
    x = preactivated(x, second, stride=2, shortcut=shortcut)
    x = preactivated(x, third, stride=2, shortcut=shortcut)
    assert isinstance(network.bn_last, nn.BatchNorm2d)
    expected = network.fc(activated(x, network.bn_last).mean(dim=(2, 3)))
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("index", [0, 1])
def test_preactivated_bottleneck_equals_its_description(
    build: Build, blocks: Blocks, shortcut: Shortcut, index: int
) -> None:
    network = build(ResNet, 50, width=1 / 16, preactivation=True, shortcut=shortcut).double()
    block = blocks(network.layer2)[index]
    x = random_images(2, 16 if index == 0 else 32, 8, 8)
    expected = preactivated(x, block, stride=2 if index == 0 else 1, shortcut=shortcut if index == 0 else None)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("family", "depth"), [(CifarResNet, 8), (ResNet, 18), (ResNet, 50)])
def test_a_norm_stands_behind_the_stem_or_at_the_end(
    build: Build, blocks: Blocks, family: type[CifarResNet] | type[ResNet], depth: int
) -> None:
    usual, preactivated = (build(family, depth, width=1 / 16, preactivation=word) for word in (False, True))
    assert (usual.bn1 is None, usual.bn_last is None) == (False, True)
    assert (preactivated.bn1 is None, preactivated.bn_last is None) == (True, False)
    assert {type(block) for block in blocks(preactivated)} == {PreActBottleneck if depth == 50 else PreActBasicBlock}


def test_the_shortcut_of_a_block_that_keeps_its_shape_is_its_input(build: Build, blocks: Blocks) -> None:
    """Not the activated one, which a block that changes the shape takes."""
    block = blocks(build(CifarResNet, 14, preactivation=True))[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)
