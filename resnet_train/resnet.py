"""Residual networks for small images: the two families of He et al., their plain twins, and the usual variations.

- `CifarResNet`: 6n+2 layers, three stages of 16, 32, 64 channels (He et al. 2015, arXiv 1512.03385, section 4.2).
- `ResNet`: four stages of 64 to 512 channels, basic or bottleneck blocks (same paper, table 1), with the 3x3 stem that
  CIFAR code uses or with the original one.

Parameter names are torchvision's (``layer1.0.conv1.weight``, ``layer2.0.downsample.0.weight``, ``fc.bias``), so with
``stem="imagenet"`` its weights load as they are. All networks take ``(N, 3, H, W)`` floats, return ``(N, classes)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shortcut = Literal["A", "B"]
Stem = Literal["cifar", "imagenet"]
Init = Literal["he", "glorot", "default"]
Activation = Literal["relu", "sigmoid", "tanh"]
Conv = Callable[..., nn.Conv2d]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
# depth: blocks in each of the four stages (He et al. 2015, table 1), and whether they are bottlenecks
RESNET_STAGES: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def norm_act(norm: nn.Module, activation: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Twice:
    """``activation(norm(x) + shortcut)``, given twice: for the next layer and for the shortcut around it.

    Here both are the same tensor. An implementation that makes them two, such as `resnet_train.fused.norm_act`,
    receives the gradients of both uses apart.
    """
    out = norm(x)
    if shortcut is not None:
        out = out + shortcut
    out = activation(out)
    return out, out


Twice = tuple[Tensor, Tensor]
NormAct = Callable[..., Twice]  # norm_act above, or what takes its place


class PadShortcut(nn.Module):
    """Option A (He et al. 2015, section 3.3): take every second pixel, fill the new channels with zeros. No parameters.

    ``(N, C, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride))``; the zeros go half before, half after.
    """

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (planes - inplanes) // 2
        self.padding = (0, 0, 0, 0, before, planes - inplanes - before)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride))``."""
        if x.is_contiguous(memory_format=torch.channels_last):  # then keep to it, in the gradient too
            pixels = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride]  # (N, H / stride, W / stride, C)
            return F.pad(pixels, self.padding[-2:]).permute(0, 3, 1, 2)
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)``.

    With ``preactivation`` (He et al. 2016, arXiv 1603.05027, figure 4e) norm and activation come before each
    convolution, and a block that changes shape feeds its shortcut from the activated input. With ``residual=False``
    the sum is left out and the block is a piece of a plain network.
    """

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        *,
        downsample: nn.Module | None,
        activation: Callable[[], nn.Module],
        conv: Conv,
        preactivation: bool,
        residual: bool,
        norm_act: NormAct,
    ) -> None:
        super().__init__()
        self.conv1 = conv(inplanes, planes, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(inplanes if preactivation else planes)
        self.conv2 = conv(planes, planes, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = activation()
        self.downsample = downsample
        self.preactivation = preactivation
        self.residual = residual
        self.norm_act = norm_act

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The norm whose scale starts at zero with ``zero_init_residual``."""
        return self.bn2

    def forward(self, inputs: Twice) -> Twice:
        """``(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)``, each twice: see `norm_act`."""
        x, shortcut = inputs
        if self.preactivation:
            out, out_again = self.norm_act(self.bn1, self.relu, x)
            shortcut = shortcut if self.downsample is None else self.downsample(out_again)
            out, _ = self.norm_act(self.bn2, self.relu, self.conv1(out))
            out = self.conv2(out)
            out = out + shortcut if self.residual else out
            return out, out
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        out, _ = self.norm_act(self.bn1, self.relu, self.conv1(x))
        return self.norm_act(self.bn2, self.relu, self.conv2(out), shortcut if self.residual else None)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: ``(N, inplanes, H, W) -> (N, 4 * planes, H / stride, W / stride)``.

    The stride sits in the 3x3 convolution, as in torchvision ("ResNet v1.5"), not in the first 1x1 of the paper.
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        *,
        downsample: nn.Module | None,
        activation: Callable[[], nn.Module],
        conv: Conv,
        preactivation: bool,
        residual: bool,
        norm_act: NormAct,
    ) -> None:
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = conv(inplanes, planes, 1)
        self.bn1 = nn.BatchNorm2d(inplanes if preactivation else planes)
        self.conv2 = conv(planes, planes, 3, stride=stride, padding=1)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv(planes, outplanes, 1)
        self.bn3 = nn.BatchNorm2d(planes if preactivation else outplanes)
        self.relu = activation()
        self.downsample = downsample
        self.preactivation = preactivation
        self.residual = residual
        self.norm_act = norm_act

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The norm whose scale starts at zero with ``zero_init_residual``."""
        return self.bn3

    def forward(self, inputs: Twice) -> Twice:
        """``(N, inplanes, H, W) -> (N, 4 * planes, H / stride, W / stride)``, each twice: see `norm_act`."""
        x, shortcut = inputs
        if self.preactivation:
            out, out_again = self.norm_act(self.bn1, self.relu, x)
            shortcut = shortcut if self.downsample is None else self.downsample(out_again)
            out, _ = self.norm_act(self.bn2, self.relu, self.conv1(out))
            out, _ = self.norm_act(self.bn3, self.relu, self.conv2(out))
            out = self.conv3(out)
            out = out + shortcut if self.residual else out
            return out, out
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        out, _ = self.norm_act(self.bn1, self.relu, self.conv1(x))
        out, _ = self.norm_act(self.bn2, self.relu, self.conv2(out))
        return self.norm_act(self.bn3, self.relu, self.conv3(out), shortcut if self.residual else None)


Block = type[BasicBlock] | type[Bottleneck]


def stage(
    block: Block,
    inplanes: int,
    planes: int,
    num_blocks: int,
    *,
    stride: int,
    shortcut: Shortcut,
    activation: Callable[[], nn.Module],
    conv: Conv,
    preactivation: bool,
    residual: bool,
    norm_act: NormAct,
) -> nn.Sequential:
    """Stack ``num_blocks`` blocks, the first with ``stride`` and, where the shape changes, a shortcut that fits."""
    outplanes = planes * block.expansion
    blocks = []
    for index in range(num_blocks):
        changes_shape = index == 0 and (stride != 1 or inplanes != outplanes)
        blocks.append(
            block(
                inplanes,
                planes,
                stride if index == 0 else 1,
                downsample=(
                    projection(inplanes, outplanes, stride, shortcut=shortcut, conv=conv, with_norm=not preactivation)
                    if changes_shape and residual
                    else None
                ),
                activation=activation,
                conv=conv,
                preactivation=preactivation,
                residual=residual,
                norm_act=norm_act,
            )
        )
        inplanes = outplanes
    return nn.Sequential(*blocks)


def projection(
    inplanes: int, outplanes: int, stride: int, *, shortcut: Shortcut, conv: Conv, with_norm: bool
) -> nn.Module:
    """The shortcut of a block that changes shape: zero padding (A) or a 1x1 convolution (B)."""
    if shortcut == "A":
        return PadShortcut(inplanes, outplanes, stride)
    convolution = conv(inplanes, outplanes, 1, stride=stride)
    return nn.Sequential(convolution, nn.BatchNorm2d(outplanes)) if with_norm else nn.Sequential(convolution)


class CifarResNet(nn.Module):
    """The 6n+2 networks of He et al. 2015, section 4.2: ``(N, 3, H, W) -> (N, num_classes)``.

    ``depth`` counts layers with weights: the first convolution, 6n in three stages of n blocks (16, 32, 64 channels
    times ``width``), and the classifier. Raises ``ValueError`` for a depth that is not 6n + 2.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        shortcut: Shortcut = "A",
        residual: bool = True,
        width: float = 1.0,
        preactivation: bool = False,
        dropout: float = 0.0,
        activation: Activation = "relu",
        conv_bias: bool = False,
        init: Init = "he",
        zero_init_residual: bool = False,
        norm_act: NormAct = norm_act,
        conv: Conv = nn.Conv2d,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}")
        num_blocks = (depth - 2) // 6
        planes = [scaled(channels, width) for channels in (16, 32, 64)]
        conv = partial(conv, bias=conv_bias)
        make = partial(
            stage,
            BasicBlock,
            shortcut=shortcut,
            activation=ACTIVATIONS[activation],
            conv=conv,
            preactivation=preactivation,
            residual=residual,
            norm_act=norm_act,
        )
        self.conv1 = conv(3, planes[0], 3, padding=1)  # (N, 16, H, W)
        # Norm and activation stand behind the stem, or, with preactivation, behind the last block.
        self.bn1 = nn.Identity() if preactivation else nn.BatchNorm2d(planes[0])
        self.layer1 = make(planes[0], planes[0], num_blocks, stride=1)  # (N, 16, H, W)
        self.layer2 = make(planes[0], planes[1], num_blocks, stride=2)  # (N, 32, H / 2, W / 2)
        self.layer3 = make(planes[1], planes[2], num_blocks, stride=2)  # (N, 64, H / 4, W / 4)
        self.bn_last = nn.BatchNorm2d(planes[2]) if preactivation else nn.Identity()
        self.relu = ACTIVATIONS[activation]()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(planes[2], num_classes)
        self.preactivation = preactivation
        self.norm_act = norm_act
        initialise(self, init=init, activation=activation, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        x = self.conv1(x)
        twice = (x, x) if self.preactivation else self.norm_act(self.bn1, self.relu, x)
        x, _ = self.layer3(self.layer2(self.layer1(twice)))
        if self.preactivation:
            x, _ = self.norm_act(self.bn_last, self.relu, x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The four-stage networks of He et al. 2015, table 1: ``(N, 3, H, W) -> (N, num_classes)``.

    ``stem="cifar"``: one 3x3 convolution at full resolution, for 32x32 images; ``stem="imagenet"``: 7x7 stride 2 and
    max-pooling, the network of the paper and of torchvision. Raises ``ValueError`` for a depth that is not in
    `RESNET_STAGES`.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        stem: Stem = "cifar",
        shortcut: Shortcut = "B",
        residual: bool = True,
        width: float = 1.0,
        preactivation: bool = False,
        dropout: float = 0.0,
        activation: Activation = "relu",
        conv_bias: bool = False,
        init: Init = "he",
        zero_init_residual: bool = False,
        norm_act: NormAct = norm_act,
        conv: Conv = nn.Conv2d,
    ) -> None:
        super().__init__()
        if depth not in RESNET_STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, RESNET_STAGES))}, got {depth}")
        num_blocks, bottleneck = RESNET_STAGES[depth]
        block: Block = Bottleneck if bottleneck else BasicBlock
        planes = [scaled(channels, width) for channels in (64, 128, 256, 512)]
        features = planes[3] * block.expansion
        conv = partial(conv, bias=conv_bias)
        make = partial(
            stage,
            block,
            shortcut=shortcut,
            activation=ACTIVATIONS[activation],
            conv=conv,
            preactivation=preactivation,
            residual=residual,
            norm_act=norm_act,
        )
        if stem == "cifar":
            self.conv1 = conv(3, planes[0], 3, padding=1)  # (N, 64, H, W)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = conv(3, planes[0], 7, stride=2, padding=3)  # (N, 64, H / 2, W / 2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)  # (N, 64, H / 4, W / 4)
        self.bn1 = nn.Identity() if preactivation else nn.BatchNorm2d(planes[0])
        self.layer1 = make(planes[0], planes[0], num_blocks[0], stride=1)
        self.layer2 = make(planes[0] * block.expansion, planes[1], num_blocks[1], stride=2)
        self.layer3 = make(planes[1] * block.expansion, planes[2], num_blocks[2], stride=2)
        self.layer4 = make(planes[2] * block.expansion, planes[3], num_blocks[3], stride=2)
        self.bn_last = nn.BatchNorm2d(features) if preactivation else nn.Identity()
        self.relu = ACTIVATIONS[activation]()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        self.preactivation = preactivation
        self.norm_act = norm_act
        initialise(self, init=init, activation=activation, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, 3, H, W)``."""
        x = self.conv1(x)
        twice = (x, x) if self.preactivation else self.norm_act(self.bn1, self.relu, x)
        if not isinstance(self.maxpool, nn.Identity):
            x = self.maxpool(twice[0])
            twice = x, x
        x, _ = self.layer4(self.layer3(self.layer2(self.layer1(twice))))
        if self.preactivation:
            x, _ = self.norm_act(self.bn_last, self.relu, x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


def scaled(channels: int, width: float) -> int:
    """Channels times the width multiplier, rounded, at least one."""
    return max(1, round(channels * width))


def initialise(model: nn.Module, *, init: Init, activation: Activation, zero_init_residual: bool) -> None:
    """Set the weights of convolutions (and, for glorot, of the classifier) in place; norms start at scale 1, shift 0.

    ``he``: normal with variance ``gain**2 / fan_out`` (He et al. 2015, arXiv 1502.01852, as in torchvision);
    ``glorot``: uniform, Glorot and Bengio 2010; ``default``: PyTorch's own. ``zero_init_residual`` starts each block
    as the identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and init == "he":
            gain = nn.init.calculate_gain(activation)
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=gain / math.sqrt(fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear) and init == "glorot":
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                # A preactivated block ends in a convolution: zero that, which makes it the identity just the same.
                last = module.conv3 if isinstance(module, Bottleneck) else module.conv2
                nn.init.zeros_(last.weight if module.preactivation else module.last_bn.weight)
                if module.preactivation and last.bias is not None:
                    nn.init.zeros_(last.bias)


def num_parameters(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of one forward pass over one image, counted in convolutions and linear layers.

    Counted while a ``(1, 3, image_size, image_size)`` image passes through a copy that holds no data (the meta
    device), so the model itself is not touched.
    """
    total = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    was_training = model.training
    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        shadow = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        model.eval()
        with torch.no_grad():
            torch.func.functional_call(model, shadow, torch.empty(1, 3, image_size, image_size, device="meta"))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return total
