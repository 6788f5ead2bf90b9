"""Parameters and multiply-adds against the papers, torchvision, and formulas written down here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from resnet_train.kernels import cpu
from resnet_train.kernels.fuse import fuse
from resnet_train.models.count import layers, multiply_adds, num_parameters, trace
from resnet_train.models.resnet import CifarResNet, ResNet

Build = Callable[..., CifarResNet | ResNet]


def torchvision_on_meta(depth: int) -> models.ResNet:
    with torch.device("meta"):
        network = models.get_model(f"resnet{depth}")
    assert isinstance(network, models.ResNet)
    return network


# ----------------------------------------------------------------------------------------------------- parameter counts


def conv_and_norm(inplanes: int, planes: int, kernel: int) -> int:
    return inplanes * planes * kernel**2 + 2 * planes


def cifar_count(depth: int) -> int:
    """He et al. 2015, section 4.2, with option A: 2n convolutions in each of three stages, and two layers around."""
    convs = (depth - 2) // 3
    total = conv_and_norm(3, 16, 3) + (64 + 1) * 10
    for inplanes, planes in ((16, 16), (16, 32), (32, 64)):
        total += conv_and_norm(inplanes, planes, 3) + (convs - 1) * conv_and_norm(planes, planes, 3)
    return total


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        *[(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
        pytest.param(1202, 19_421_274, marks=pytest.mark.slow),
    ],
)
def test_cifar_parameters_are_the_papers(on_meta: Build, depth: int, expected: int) -> None:
    assert cifar_count(depth) == expected
    assert num_parameters(on_meta(CifarResNet, depth)) == expected


def test_resnet1202_rounds_to_the_papers_19_4_million() -> None:
    assert round(cifar_count(1202) / 1e6, 1) == 19.4


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_plain_counterpart_and_preactivation_have_the_parameters_of_option_a(on_meta: Build, depth: int) -> None:
    assert num_parameters(on_meta(CifarResNet, depth, residual=False)) == cifar_count(depth)
    # Preactivated: 96 fewer in the norms in front of the two wider stages, 32 behind the stem, 128 more at the end.
    assert num_parameters(on_meta(CifarResNet, depth, preactivation=True)) == cifar_count(depth)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_option_b_adds_two_projections(on_meta: Build, depth: int) -> None:
    projections = conv_and_norm(16, 32, 1) + conv_and_norm(32, 64, 1)
    assert num_parameters(on_meta(CifarResNet, depth, shortcut="B")) == cifar_count(depth) + projections


@pytest.mark.parametrize(
    ("depth", "features", "expected"),
    [
        (18, 512, 11_689_512),
        (34, 512, 21_797_672),
        (50, 2048, 25_557_032),
        (101, 2048, 44_549_160),
        (152, 2048, 60_192_808),
    ],
)
def test_parameters_are_torchvisions(on_meta: Build, depth: int, features: int, expected: int) -> None:
    assert num_parameters(torchvision_on_meta(depth)) == expected
    assert num_parameters(on_meta(ResNet, depth, stem="imagenet", num_classes=1000)) == expected
    stem, classifier = 3 * 64 * (7**2 - 3**2), (features + 1) * (1000 - 10)
    assert num_parameters(on_meta(ResNet, depth)) == expected - stem - classifier


@pytest.mark.parametrize("depth", [18, 34])
def test_four_stages_without_projections(on_meta: Build, depth: int) -> None:
    projections = sum(conv_and_norm(planes, 2 * planes, 1) for planes in (64, 128, 256))
    expected = num_parameters(on_meta(ResNet, depth)) - projections
    assert num_parameters(on_meta(ResNet, depth, shortcut="A")) == expected
    assert num_parameters(on_meta(ResNet, depth, residual=False)) == expected


# -------------------------------------------------------------------------------------------------------- multiply-adds


def cifar_multiply_adds(depth: int) -> int:
    """Convolutions of 3x3 at 32, 16 and 8 pixels a side, and the classifier."""
    convs = (depth - 2) // 3
    total = 32**2 * 3 * 16 * 9 + 64 * 10
    for inplanes, planes, size in ((16, 16, 32), (16, 32, 16), (32, 64, 8)):
        total += size**2 * 9 * (inplanes * planes + (convs - 1) * planes * planes)
    return total


@pytest.mark.parametrize(("depth", "giga"), [(20, 0.0406), (56, 0.1255), (110, 0.2529)])
def test_multiply_adds_of_the_cifar_family(on_meta: Build, depth: int, giga: float) -> None:
    counted = multiply_adds(on_meta(CifarResNet, depth), 32)
    assert counted == cifar_multiply_adds(depth)
    assert counted / 1e9 == pytest.approx(giga, abs=5e-5)
    assert multiply_adds(on_meta(CifarResNet, depth, residual=False), 32) == counted


@pytest.mark.parametrize(("depth", "giga"), [(18, 0.555), (34, 1.159), (50, 1.298)])
def test_multiply_adds_of_small_images(on_meta: Build, depth: int, giga: float) -> None:
    assert multiply_adds(on_meta(ResNet, depth), 32) / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize(("depth", "giga"), [(18, 1.814), (34, 3.664), (50, 4.089), (101, 7.801), (152, 11.514)])
def test_multiply_adds_are_those_torchvision_documents(on_meta: Build, depth: int, giga: float) -> None:
    network = on_meta(ResNet, depth, stem="imagenet", num_classes=1000)
    assert multiply_adds(network, 224) / 1e9 == pytest.approx(giga, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_multiply_adds_leaves_the_network_alone(on_meta: Build, build: Build, training: bool) -> None:
    network = build(CifarResNet, 8, dropout=0.5).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    assert multiply_adds(network, 32) == multiply_adds(on_meta(CifarResNet, 8), 32)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training is training and not module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "paper"), [(18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3)])
def test_multiply_adds_are_the_papers_with_its_strides(on_meta: Build, depth: int, paper: float) -> None:
    """He et al. 2015, table 1: the stride of a bottleneck stands in its first convolution there."""
    network = on_meta(ResNet, depth, stem="imagenet", num_classes=1000)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    assert multiply_adds(network, 224) / 1e9 == pytest.approx(paper, abs=0.07)


def seen(network: CifarResNet | ResNet, name: str, size: int) -> int:
    """Side of the square of pixels on which one value of a layer depends, by its gradient."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    network.eval().double()
    image = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    outputs: list[torch.Tensor] = []
    with network.get_submodule(name).register_forward_hook(lambda *found: outputs.append(found[2])):
        network(image)
    middle = outputs[0].shape[-1] // 2
    outputs[0][0, :, middle, middle].sum().backward()
    assert image.grad is not None
    columns = image.grad[0].abs().sum((0, 1)).nonzero().flatten()
    assert columns[0] > 0 and columns[-1] < size - 1, "the image is too small"
    return int(columns[-1] - columns[0]) + 1


@pytest.mark.parametrize(
    ("family", "depth", "options", "name", "size"),
    [
        (CifarResNet, 20, {}, "layer3.2.conv2", 128),
        (CifarResNet, 20, {"shortcut": "B"}, "layer2.0.downsample.0", 64),
        (CifarResNet, 14, {"preactivation": True}, "layer3.1.conv2", 96),
        (CifarResNet, 14, {"preactivation": True, "shortcut": "B"}, "layer3.0.downsample.0", 64),
        (CifarResNet, 14, {"residual": False}, "layer2.1.conv1", 64),
        (ResNet, 18, {}, "layer4.1.conv2", 160),
        (ResNet, 50, {"stem": "imagenet"}, "layer3.0.conv3", 192),
    ],
)
def test_receptive_fields_by_gradients(
    build: Build, family: type[Any], depth: int, options: dict[str, Any], name: str, size: int
) -> None:
    network = build(family, depth, width=1 / 16, **options)
    found = {layer.name: layer for layer in trace(network, size)}
    if options.get("stem") == "imagenet":  # the gradient of the largest value reaches one pixel alone
        network.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    assert seen(network, name, size) == found[name].receptive_field


def test_receptive_fields_by_hand(on_meta: Build) -> None:
    """Stage by stage: each 3x3 convolution adds two pixels times the stride in front of it."""
    found = {layer.name: layer for layer in trace(on_meta(CifarResNet, 20), 32)}
    ends = [found[f"layer{stage}.2.conv2"] for stage in (1, 2, 3)]
    assert [(layer.receptive_field, layer.jump) for layer in ends] == [(3 + 6 * 2, 1), (17 + 5 * 4, 2), (41 + 5 * 8, 4)]
    assert found["avgpool"].receptive_field == found["fc"].receptive_field == 81 + 7 * 4
    found = {layer.name: layer for layer in trace(on_meta(ResNet, 18, stem="imagenet"), 224)}
    assert [found[name].receptive_field for name in ("conv1", "maxpool", "layer4.1.conv2")] == [7, 11, 435]
    assert (found["maxpool"].jump, found["layer4.1.conv2"].jump) == (4, 32)


def test_parameters_of_all_layers_add_up(on_meta: Build) -> None:
    for options in ({}, {"preactivation": True, "conv_bias": True, "shortcut": "B"}):
        network = on_meta(CifarResNet, 20, **options)
        assert sum(layer.parameters for layer in trace(network, 32)) == num_parameters(network)


def test_layers_in_the_order_of_an_image(build: Build) -> None:
    """The second stage of ResNet-8 with projections: its shortcut is computed first."""
    found = layers(build(CifarResNet, 8, shortcut="B", conv_bias=True), 32)
    assert [(layer.values_in, layer.values_out) for layer in found] == [
        (3 * 32**2, 16 * 32**2),
        *[(16 * 32**2, 16 * 32**2)] * 2,
        *[(16 * 32**2, 32 * 16**2)] * 2,
        (32 * 16**2, 32 * 16**2),
        *[(32 * 16**2, 64 * 8**2)] * 2,
        (64 * 8**2, 64 * 8**2),
        (64, 10),
    ]
    assert found[3].multiply_adds == 16**2 * 16 * 32
    assert found[4].multiply_adds == 16**2 * 16 * 32 * 9
    assert found[-1].multiply_adds == 640


@pytest.mark.parametrize(("family", "depth"), [(CifarResNet, 8), (ResNet, 18), (ResNet, 50)])
def test_fused_networks_have_the_same_layers(build: Build, family: type[Any], depth: int) -> None:
    network = build(family, depth, width=0.25)
    before = layers(network, 32)
    fuse(network, cpu.LEAVES)
    assert layers(network, 32) == before
