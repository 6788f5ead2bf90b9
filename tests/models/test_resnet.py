"""The networks against the papers, torchvision, and versions too plain to be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from resnet_train.models.resnet import RESNET_STAGES, CifarResNet, PadShortcut, ResNet, projection
from resnet_train.models.variant import OPTION_B, Activation, Init, Shortcut, Stem

Family = type[CifarResNet] | type[ResNet]
Build = Callable[..., CifarResNet | ResNet]
Blocks = Callable[[nn.Module], list[Any]]
Convolutions = Callable[[nn.Module], list[nn.Conv2d]]


def torchvision_on_meta(depth: int) -> models.ResNet:
    with torch.device("meta"):
        network = models.get_model(f"resnet{depth}")
    assert isinstance(network, models.ResNet)
    return network


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(
    ("family", "depth", "width", "channels"),
    [
        (CifarResNet, 8, 1.0, [16, 16, 32, 64]),
        (CifarResNet, 8, 2.5, [40, 40, 80, 160]),
        (CifarResNet, 8, 0.01, [1, 1, 1, 1]),
        (ResNet, 18, 0.25, [16, 16, 32, 64, 128]),
        (ResNet, 50, 0.25, [16, 64, 128, 256, 512]),
    ],
)
def test_width_multiplies_channels(
    on_meta: Build, convolutions: Convolutions, family: Family, depth: int, width: float, channels: list[int]
) -> None:
    network = on_meta(family, depth, width=width)
    stages = [module for name, module in network.named_children() if name.startswith("layer")]
    outputs = [convolutions(stage)[-1].out_channels for stage in stages]
    assert [network.conv1.out_channels, *outputs] == channels
    assert network.fc.in_features == channels[-1]


# ---------------------------------------------------------------------------------------------------------- torchvision


def torchvision_with_random_weights(depth: int) -> models.ResNet:
    """Every tensor random, running statistics included, in float64.

    The tolerance of 1e-5 must tell a wrong network from a rounded sum. In float64 the rounding of 152 layers stays
    below 1e-12, whatever order of summation the machine picks; in float32 it may reach 1e-5.
    """
    network = torchvision_on_meta(depth).double().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(depth)
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.zero_()
        elif value.dim() > 1:  # convolutions, classifier: variance 1 / fan_in
            bound = math.sqrt(3 / value[0].numel())
            value.uniform_(-bound, bound, generator=generator)
        elif key.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:  # running_mean, bias
            value.uniform_(-0.5, 0.5, generator=generator)
    return network


def random_images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "depth", [pytest.param(depth, marks=[pytest.mark.slow] * (depth > 50)) for depth in RESNET_STAGES]
)
def test_torchvisions_weights_give_torchvisions_logits(on_meta: Build, depth: int) -> None:
    theirs = torchvision_with_random_weights(depth).eval()
    ours = on_meta(ResNet, depth, stem="imagenet", num_classes=1000).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        logits, expected = ours(images), theirs(images)
    assert logits.shape == (2, 1000)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_torchvisions_weights_give_torchvisions_gradients(build: Build) -> None:
    theirs = torchvision_with_random_weights(18)
    ours = build(ResNet, 18, stem="imagenet", num_classes=1000).double()
    ours.load_state_dict(theirs.state_dict())
    images, labels = random_images(4, 3, 64, 64), torch.tensor([1, 10, 100, 999])
    for network in (ours, theirs):
        F.cross_entropy(network.train()(images), labels).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == set(expected)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-10, msg=name)
    for name, statistics in ours.named_buffers():
        torch.testing.assert_close(statistics, theirs.get_buffer(name), rtol=1e-5, atol=1e-10, msg=name)


@pytest.mark.parametrize("depth", list(RESNET_STAGES))
def test_state_dict_is_torchvisions(on_meta: Build, depth: int) -> None:
    ours = on_meta(ResNet, depth, stem="imagenet", num_classes=1000).state_dict()
    assert shapes(ours) == shapes(torchvision_on_meta(depth).state_dict())


def test_cifar_resnet_has_torchvisions_names(on_meta: Build) -> None:
    keys = set(on_meta(CifarResNet, 8, shortcut="B").state_dict())
    with torch.device("meta"):
        theirs = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    assert keys == {key for key in theirs.state_dict() if not key.startswith("layer4")}


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_every_parameter_receives_a_gradient(
    small: Build, residual: bool, preactivation: bool, shortcut: Shortcut, activation: Activation
) -> None:
    """Each but one kind: a bias that ends in a batch norm, which subtracts it again, as all of the convolutions' do."""
    torch.manual_seed(0)
    network = small(
        residual=residual,
        preactivation=preactivation,
        shortcut=shortcut,
        activation=activation,
        conv_bias=True,
    ).double()
    F.cross_entropy(network(random_images(8, 3, 16, 16)), torch.arange(8)).backward()
    gradients = {name: p.grad.abs().max().item() for name, p in network.named_parameters() if p.grad is not None}
    assert set(gradients) == {name for name, _ in network.named_parameters()}
    conv_biases = {f"{name}.bias" for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    vanishing = {name for name, gradient in gradients.items() if gradient < 1e-12}
    assert vanishing == conv_biases


# ------------------------------------------------------------------------------------------------- blocks and shortcuts


@pytest.mark.parametrize(
    ("inplanes", "planes", "stride", "size"), [(2, 4, 2, 8), (2, 5, 2, 7), (3, 3, 2, 4), (4, 16, 1, 3)]
)
def test_pad_shortcut_takes_every_second_pixel_and_adds_zeros(
    inplanes: int, planes: int, stride: int, size: int
) -> None:
    x = random_images(2, inplanes, size, size)
    out = PadShortcut(inplanes, planes, stride)(x)
    new_size = math.ceil(size / stride)
    expected = torch.zeros(2, planes, new_size, new_size, dtype=torch.float64)
    for n in range(2):
        for channel in range(inplanes):
            for y in range(new_size):
                for column in range(new_size):
                    target = channel + (planes - inplanes) // 2
                    expected[n, target, y, column] = x[n, channel, y * stride, column * stride]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("size", [7, 8, 32])
@pytest.mark.parametrize("inplanes", [*range(1, 18), 24, 32])
def test_a_projection_of_few_channels_has_the_gradient_of_its_formula(inplanes: int, size: int) -> None:
    """In channels_last and fp32, where oneDNN's own is wrong for a few channels or ends the process."""
    conv = next(projection(inplanes, 2 * inplanes, 2, OPTION_B).children())
    conv = conv.to(memory_format=torch.channels_last)
    assert isinstance(conv, nn.Conv2d)
    x = random_images(8, inplanes, size, size).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    exact_x, exact_weight = (tensor.detach().double().contiguous().requires_grad_() for tensor in (x, conv.weight))
    exact = torch.einsum("nchw,oc->nohw", exact_x[:, :, ::2, ::2], exact_weight[:, :, 0, 0])
    out = conv(x)
    weights = random_images(*out.shape)
    (out * weights).sum().backward()
    (exact * weights).sum().backward()
    for ours, theirs in ((out, exact), (x.grad, exact_x.grad), (conv.weight.grad, exact_weight.grad)):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
def test_plain_network_has_no_shortcut(
    small: Build, blocks: Blocks, convolutions: Convolutions, preactivation: bool
) -> None:
    network = small(residual=False, preactivation=preactivation)
    assert all(block.downsample is None for block in blocks(network))
    assert not [module for module in network.modules() if isinstance(module, PadShortcut)]
    # Zero weights in the last convolution of a block leave nothing of its input.
    block = blocks(network)[-1]
    nn.init.zeros_(convolutions(block)[-1].weight)
    inplanes = convolutions(block)[0].in_channels
    x = torch.randn(2, inplanes, 4, 4)
    assert block(x).count_nonzero() == 0


def test_residual_network_uses_shortcuts_wherever_the_shape_changes(on_meta: Build, blocks: Blocks) -> None:
    network = on_meta(ResNet, 50)
    changed = [index for index, block in enumerate(blocks(network)) if block.downsample is not None]
    assert changed == [0, 3, 7, 13]  # the first blocks of stages of 3, 4, 6, 3
    assert [index for index, b in enumerate(blocks(on_meta(ResNet, 18))) if b.downsample is not None] == [2, 4, 6]
    assert [index for index, b in enumerate(blocks(on_meta(CifarResNet, 20))) if b.downsample is not None] == [3, 6]


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_logits_have_one_value_a_class(build: Build, size: int, shortcut: Shortcut, preactivation: bool) -> None:
    images = torch.zeros(2, 3, size, size)
    options: dict[str, Any] = {"shortcut": shortcut, "preactivation": preactivation, "num_classes": 7}
    assert build(CifarResNet, 8, width=0.25, **options)(images).shape == (2, 7)
    stems: tuple[Stem, ...] = ("cifar", "imagenet")
    for stem in stems:
        assert build(ResNet, 18, width=1 / 16, stem=stem, **options)(images).shape == (2, 7)


def test_dropout_is_active_in_training_only(small: Build) -> None:
    network, without = small(dropout=0.5), small()
    without.load_state_dict(network.state_dict())
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(without(images), without(images))
    assert not torch.equal(network(images), network(images))
    without.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images), without.eval()(images))


@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("init", "conv_bias"), [("he", False), ("default", True)])
def test_zero_init_residual_starts_every_block_as_its_shortcut(
    small: Build,
    blocks: Blocks,
    convolutions: Convolutions,
    preactivation: bool,
    shortcut: Shortcut,
    init: Init,
    conv_bias: bool,
) -> None:
    network = small(
        preactivation=preactivation,
        shortcut=shortcut,
        init=init,
        conv_bias=conv_bias,
        zero_init_residual=True,
    )
    x = torch.randn(2, convolutions(blocks(network)[0])[0].in_channels, 16, 16)
    for block in blocks(network):
        source = F.relu(block.bn1(x)) if preactivation else x
        expected = x if block.downsample is None else block.downsample(source)
        x = block(x)
        assert torch.equal(x, expected if preactivation else F.relu(expected))


def fans(module: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    return module.weight[0].numel(), module.weight.numel() // module.weight.shape[1]


@pytest.mark.parametrize(("activation", "gain"), [("relu", math.sqrt(2)), ("sigmoid", 1.0), ("tanh", 5 / 3)])
def test_he_initialisation(small: Build, convolutions: Convolutions, activation: Activation, gain: float) -> None:
    torch.manual_seed(0)
    network = small(activation=activation, conv_bias=True)
    for module in convolutions(network):
        std, numel = gain / math.sqrt(fans(module)[1]), module.weight.numel()
        assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * numel))  # five deviations
        assert abs(module.weight.mean().item()) < 5 * std / math.sqrt(numel)
        assert module.bias is not None
        assert module.bias.count_nonzero() == 0


@pytest.mark.parametrize("init", ["glorot", "default"])
def test_bounds_of_uniform_initialisation(small: Build, convolutions: Convolutions, init: Init) -> None:
    torch.manual_seed(0)
    network = small(init=init, conv_bias=True)
    layers: list[nn.Conv2d | nn.Linear] = [*convolutions(network), network.fc]
    for module in layers:
        fan_in, fan_out = fans(module)
        bound = math.sqrt(6 / (fan_in + fan_out)) if init == "glorot" else math.sqrt(1 / fan_in)
        largest = module.weight.abs().max().item()
        assert largest <= bound * (1 + 1e-6)
        assert largest > bound * (1 - 10 / module.weight.numel())  # fails once in exp(10) times; the seed is fixed
        assert module.bias is not None
        assert bool(module.bias.count_nonzero()) == (init == "default")


def test_norms_start_at_one_and_zero(small: Build) -> None:
    norms = [module for module in small().modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(bool((norm.weight == 1).all() and (norm.bias == 0).all()) for norm in norms)


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 18, 21, 51, 1200])
def test_depth_outside_6n_plus_2(build: Build, depth: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^depth must be 6n \+ 2 \(8, 14, 20, 32, 44, 56, 110, \.\.\.\), got {depth}$"
    ):
        build(CifarResNet, depth)


@pytest.mark.parametrize("depth", [-1, 0, 17, 20, 56, 200])
def test_depth_outside_the_table(build: Build, depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth must be one of 18, 34, 50, 101, 152, got {depth}$"):
        build(ResNet, depth)
