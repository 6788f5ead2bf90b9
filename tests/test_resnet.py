"""The networks against the papers, torchvision, and versions too plain to be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from resnet_train.resnet import (
    RESNET_STAGES,
    Activation,
    BasicBlock,
    Bottleneck,
    CifarResNet,
    Init,
    PadShortcut,
    ResNet,
    Shortcut,
    Stem,
    multiply_adds,
    num_parameters,
)

Family = type[CifarResNet] | type[ResNet]
# One small network of each kind of block: CIFAR, four stages of basic blocks, four stages of bottlenecks.
SMALL: list[tuple[Family, int, float]] = [(CifarResNet, 8, 0.5), (ResNet, 18, 1 / 8), (ResNet, 50, 1 / 16)]
small = pytest.mark.parametrize(("family", "depth", "width"), SMALL, ids=["cifar8", "resnet18", "resnet50"])


def on_meta(family: Family, depth: int, **options: Any) -> CifarResNet | ResNet:
    """The network without its data: only shapes."""
    with torch.device("meta"):
        return family(depth, **options)


def torchvision_on_meta(depth: int) -> models.ResNet:
    with torch.device("meta"):
        network = models.get_model(f"resnet{depth}")
    assert isinstance(network, models.ResNet)
    return network


def blocks(network: nn.Module) -> list[BasicBlock | Bottleneck]:
    return [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


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
def test_cifar_parameters_are_the_papers(depth: int, expected: int) -> None:
    assert cifar_count(depth) == expected
    assert num_parameters(on_meta(CifarResNet, depth)) == expected


def test_resnet1202_rounds_to_the_papers_19_4_million() -> None:
    assert round(cifar_count(1202) / 1e6, 1) == 19.4


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_plain_twin_and_preactivation_have_the_parameters_of_option_a(depth: int) -> None:
    assert num_parameters(on_meta(CifarResNet, depth, residual=False)) == cifar_count(depth)
    # Preactivated: 96 fewer in the norms in front of the two wider stages, 32 behind the stem, 128 more at the end.
    assert num_parameters(on_meta(CifarResNet, depth, preactivation=True)) == cifar_count(depth)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_option_b_adds_two_projections(depth: int) -> None:
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
def test_parameters_are_torchvisions(depth: int, features: int, expected: int) -> None:
    assert num_parameters(torchvision_on_meta(depth)) == expected
    assert num_parameters(on_meta(ResNet, depth, stem="imagenet", num_classes=1000)) == expected
    stem, classifier = 3 * 64 * (7**2 - 3**2), (features + 1) * (1000 - 10)
    assert num_parameters(on_meta(ResNet, depth)) == expected - stem - classifier


@pytest.mark.parametrize("depth", [18, 34])
def test_four_stages_without_projections(depth: int) -> None:
    projections = sum(conv_and_norm(planes, 2 * planes, 1) for planes in (64, 128, 256))
    expected = num_parameters(on_meta(ResNet, depth)) - projections
    assert num_parameters(on_meta(ResNet, depth, shortcut="A")) == expected
    assert num_parameters(on_meta(ResNet, depth, residual=False)) == expected


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
def test_width_multiplies_channels(family: Family, depth: int, width: float, channels: list[int]) -> None:
    network = on_meta(family, depth, width=width)
    stages = [module for name, module in network.named_children() if name.startswith("layer")]
    outputs = [convolutions(stage)[-1].out_channels for stage in stages]
    assert [network.conv1.out_channels, *outputs] == channels
    assert network.fc.in_features == channels[-1]


# -------------------------------------------------------------------------------------------------------- multiply-adds


def cifar_multiply_adds(depth: int) -> int:
    """Convolutions of 3x3 at 32, 16 and 8 pixels a side, and the classifier."""
    convs = (depth - 2) // 3
    total = 32**2 * 3 * 16 * 9 + 64 * 10
    for inplanes, planes, size in ((16, 16, 32), (16, 32, 16), (32, 64, 8)):
        total += size**2 * 9 * (inplanes * planes + (convs - 1) * planes * planes)
    return total


@pytest.mark.parametrize(("depth", "giga"), [(20, 0.0406), (56, 0.1255), (110, 0.2529)])
def test_multiply_adds_of_the_cifar_family(depth: int, giga: float) -> None:
    counted = multiply_adds(on_meta(CifarResNet, depth), 32)
    assert counted == cifar_multiply_adds(depth)
    assert counted / 1e9 == pytest.approx(giga, abs=5e-5)
    assert multiply_adds(on_meta(CifarResNet, depth, residual=False), 32) == counted


@pytest.mark.parametrize(("depth", "giga"), [(18, 0.555), (34, 1.159), (50, 1.298)])
def test_multiply_adds_of_small_images(depth: int, giga: float) -> None:
    assert multiply_adds(on_meta(ResNet, depth), 32) / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize(("depth", "giga"), [(18, 1.814), (34, 3.664), (50, 4.089), (101, 7.801), (152, 11.514)])
def test_multiply_adds_are_those_torchvision_documents(depth: int, giga: float) -> None:
    network = on_meta(ResNet, depth, stem="imagenet", num_classes=1000)
    assert multiply_adds(network, 224) / 1e9 == pytest.approx(giga, rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_multiply_adds_leaves_the_network_alone(training: bool) -> None:
    network = CifarResNet(8, dropout=0.5).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    assert multiply_adds(network, 32) == multiply_adds(on_meta(CifarResNet, 8), 32)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training is training and not module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


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
def test_torchvisions_weights_give_torchvisions_logits(depth: int) -> None:
    theirs = torchvision_with_random_weights(depth).eval()
    ours = on_meta(ResNet, depth, stem="imagenet", num_classes=1000).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        logits, expected = ours(images), theirs(images)
    assert logits.shape == (2, 1000)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_torchvisions_weights_give_torchvisions_gradients() -> None:
    theirs = torchvision_with_random_weights(18)
    ours = ResNet(18, stem="imagenet", num_classes=1000).double()
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
def test_state_dict_is_torchvisions(depth: int) -> None:
    ours = on_meta(ResNet, depth, stem="imagenet", num_classes=1000).state_dict()
    assert shapes(ours) == shapes(torchvision_on_meta(depth).state_dict())


def test_cifar_resnet_has_torchvisions_names() -> None:
    keys = set(on_meta(CifarResNet, 8, shortcut="B").state_dict())
    with torch.device("meta"):
        theirs = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    assert keys == {key for key in theirs.state_dict() if not key.startswith("layer4")}


# ------------------------------------------------------------------------------------------------------------ gradients


@small
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_every_parameter_receives_a_gradient(
    family: Family,
    depth: int,
    width: float,
    residual: bool,
    preactivation: bool,
    shortcut: Shortcut,
    activation: Activation,
) -> None:
    """Each but one kind: a bias that ends in a batch norm, which subtracts it again, as all of the convolutions' do."""
    torch.manual_seed(0)
    network = family(
        depth,
        width=width,
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


def activated(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))


def option_a(x: Tensor, planes: int) -> Tensor:
    out = torch.zeros(len(x), planes, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
    first = (planes - x.shape[1]) // 2
    out[:, first : first + x.shape[1]] = x[:, :, ::2, ::2]
    return out


def preactivated(x: Tensor, block: BasicBlock | Bottleneck, *, stride: int, shortcut: Shortcut | None) -> Tensor:
    """He et al. 2016, figure 4(e), with the weights of ``block``; ``shortcut=None`` where the shape stays."""
    first = activated(x, block.bn1)
    if isinstance(block, BasicBlock):
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
        (projection,) = convolutions(block.downsample)
        assert len(block.downsample) == 1  # no norm: the next block has one
        return out + F.conv2d(first, projection.weight, stride=stride)
    return out + x


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_preactivated_network_equals_its_description(shortcut: Shortcut) -> None:
    network = CifarResNet(8, preactivation=True, shortcut=shortcut).double()
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
def test_preactivated_bottleneck_equals_its_description(shortcut: Shortcut, index: int) -> None:
    network = ResNet(50, width=1 / 16, preactivation=True, shortcut=shortcut).double()
    block = blocks(network.layer2)[index]
    x = random_images(2, 16 if index == 0 else 32, 8, 8)
    expected = preactivated(x, block, stride=2 if index == 0 else 1, shortcut=shortcut if index == 0 else None)
    torch.testing.assert_close(block((x, x))[0], expected)


@small
@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
def test_plain_network_has_no_shortcut(family: Family, depth: int, width: float, preactivation: bool) -> None:
    network = family(depth, width=width, residual=False, preactivation=preactivation)
    assert all(block.downsample is None for block in blocks(network))
    assert not [module for module in network.modules() if isinstance(module, PadShortcut)]
    # Zero weights in the last convolution of a block leave nothing of its input.
    block = blocks(network)[-1]
    nn.init.zeros_(convolutions(block)[-1].weight)
    inplanes = convolutions(block)[0].in_channels
    x = torch.randn(2, inplanes, 4, 4)
    assert block((x, x))[0].count_nonzero() == 0


def test_residual_network_uses_shortcuts_wherever_the_shape_changes() -> None:
    network = on_meta(ResNet, 50)
    changed = [index for index, block in enumerate(blocks(network)) if block.downsample is not None]
    assert changed == [0, 3, 7, 13]  # the first blocks of stages of 3, 4, 6, 3
    assert [index for index, b in enumerate(blocks(on_meta(ResNet, 18))) if b.downsample is not None] == [2, 4, 6]
    assert [index for index, b in enumerate(blocks(on_meta(CifarResNet, 20))) if b.downsample is not None] == [3, 6]


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_logits_have_one_value_a_class(size: int, shortcut: Shortcut, preactivation: bool) -> None:
    images = torch.zeros(2, 3, size, size)
    options: dict[str, Any] = {"shortcut": shortcut, "preactivation": preactivation, "num_classes": 7}
    assert CifarResNet(8, width=0.25, **options)(images).shape == (2, 7)
    stems: tuple[Stem, ...] = ("cifar", "imagenet")
    for stem in stems:
        assert ResNet(18, width=1 / 16, stem=stem, **options)(images).shape == (2, 7)


@small
def test_dropout_is_active_in_training_only(family: Family, depth: int, width: float) -> None:
    network, without = family(depth, width=width, dropout=0.5), family(depth, width=width)
    without.load_state_dict(network.state_dict())
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(without(images), without(images))
    assert not torch.equal(network(images), network(images))
    without.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images), without.eval()(images))


@small
@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("init", "conv_bias"), [("he", False), ("default", True)])
def test_zero_init_residual_starts_every_block_as_its_shortcut(
    family: Family, depth: int, width: float, preactivation: bool, shortcut: Shortcut, init: Init, conv_bias: bool
) -> None:
    network = family(
        depth,
        width=width,
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
        x, again = block((x, x))
        assert again is x
        assert torch.equal(x, expected if preactivation else F.relu(expected))


def fans(module: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    return module.weight[0].numel(), module.weight.numel() // module.weight.shape[1]


@small
@pytest.mark.parametrize(("activation", "gain"), [("relu", math.sqrt(2)), ("sigmoid", 1.0), ("tanh", 5 / 3)])
def test_he_initialisation(family: Family, depth: int, width: float, activation: Activation, gain: float) -> None:
    torch.manual_seed(0)
    network = family(depth, width=width, activation=activation, conv_bias=True)
    for module in convolutions(network):
        std, numel = gain / math.sqrt(fans(module)[1]), module.weight.numel()
        assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * numel))  # five deviations
        assert abs(module.weight.mean().item()) < 5 * std / math.sqrt(numel)
        assert module.bias is not None
        assert module.bias.count_nonzero() == 0


@small
@pytest.mark.parametrize("init", ["glorot", "default"])
def test_bounds_of_uniform_initialisation(family: Family, depth: int, width: float, init: Init) -> None:
    torch.manual_seed(0)
    network = family(depth, width=width, init=init, conv_bias=True)
    layers: list[nn.Conv2d | nn.Linear] = [*convolutions(network), network.fc]
    for module in layers:
        fan_in, fan_out = fans(module)
        bound = math.sqrt(6 / (fan_in + fan_out)) if init == "glorot" else math.sqrt(1 / fan_in)
        largest = module.weight.abs().max().item()
        assert largest <= bound * (1 + 1e-6)
        assert largest > bound * (1 - 10 / module.weight.numel())  # fails once in exp(10) times; the seed is fixed
        assert module.bias is not None
        assert bool(module.bias.count_nonzero()) == (init == "default")


@small
def test_norms_start_at_one_and_zero(family: Family, depth: int, width: float) -> None:
    norms = [module for module in family(depth, width=width).modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(bool((norm.weight == 1).all() and (norm.bias == 0).all()) for norm in norms)


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 18, 21, 51, 1200])
def test_depth_outside_6n_plus_2(depth: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^depth must be 6n \+ 2 \(8, 14, 20, 32, 44, 56, 110, \.\.\.\), got {depth}$"
    ):
        CifarResNet(depth)


@pytest.mark.parametrize("depth", [-1, 0, 17, 20, 56, 200])
def test_depth_outside_the_table(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth must be one of 18, 34, 50, 101, 152, got {depth}$"):
        ResNet(depth)
