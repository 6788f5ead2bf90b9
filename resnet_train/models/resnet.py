"""Residual networks for small images: the two families of He et al. 2015 (arXiv 1512.03385) and the usual variations.

- `CifarResNet`: 6n+2 layers, three stages of 16, 32, 64 channels (section 4.2).
- `ResNet`: four stages of 64 to 512 channels, basic or bottleneck blocks (table 1), with the 3x3 stem that CIFAR code
  uses or with the original one.

Parameter names are torchvision's (``layer1.0.conv1.weight``, ``layer2.0.downsample.0.weight``, ``fc.bias``), so with
``stem="imagenet"`` its weights load as they are. All networks take ``(N, 3, H, W)`` floats, or ``(N, 1, H, W)`` with
``channels=1``, and return ``(N, classes)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.preact import PreActBasicBlock, PreActBottleneck
from resnet_train.models.variant import OPTION_A, OPTION_B, Stem, Variant

ONEDNN_BLOCK = 16  # channels that oneDNN computes at once with AVX-512; 8 with AVX2


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


class PickedConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride, computed as one without on the pixels that it takes: the same weights and sums.

    For fewer than `ONEDNN_BLOCK` input channels in channels_last: there the gradient of the weights of oneDNN's strided
    one, on a CPU in fp32, is wrong or written outside its memory (oneDNN's issue 6035, open in November 2026).
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)``.

    ``downsample``: the shortcut of a block that changes the shape, else None. A plain network is made of the same
    blocks, without the sum.
    """

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, variant: Variant) -> None:
        super().__init__()
        bias = variant.conv_bias
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = variant.new_activation()
        self.downsample = downsample
        self.residual = variant.residual

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.residual:
            out = out + shortcut
        return self.relu(out)  # type: ignore[no-any-return]

    def zero_residual(self) -> None:
        """Make the block its shortcut: the last norm gives zero (Goyal et al. 2017, arXiv 1706.02677, section 5.1)."""
        nn.init.zeros_(self.bn2.weight)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: ``(N, inplanes, H, W) -> (N, 4 * planes, H / stride, W / stride)``.

    The stride sits in the 3x3 convolution, as in torchvision ("ResNet v1.5"), not in the first 1x1 of the paper. The
    arguments are those of `BasicBlock`.
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, variant: Variant) -> None:
        super().__init__()
        bias = variant.conv_bias
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu = variant.new_activation()
        self.downsample = downsample
        self.residual = variant.residual

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inplanes, H, W) -> (N, 4 * planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.residual:
            out = out + shortcut
        return self.relu(out)  # type: ignore[no-any-return]

    def zero_residual(self) -> None:
        """Make the block its shortcut: the last norm gives zero."""
        nn.init.zeros_(self.bn3.weight)


Block = BasicBlock | Bottleneck | PreActBasicBlock | PreActBottleneck
# depth: the block, and how many of them each of the four stages has (He et al. 2015, table 1)
RESNET_STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
PREACTIVATED: dict[type[Block], type[Block]] = {BasicBlock: PreActBasicBlock, Bottleneck: PreActBottleneck}


class CifarResNet(nn.Module):
    """The 6n+2 networks of He et al. 2015, section 4.2: ``(N, channels, H, W) -> (N, num_classes)``.

    ``depth`` counts layers with weights: the first convolution, 6n in three stages of n blocks (16, 32, 64 channels
    times ``width``), and the classifier. Raises ``ValueError`` for a depth that is not 6n + 2.
    """

    def __init__(self, depth: int, variant: Variant = OPTION_A, *, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}")
        num_blocks = (depth - 2) // 6
        block = PREACTIVATED[BasicBlock] if variant.preactivation else BasicBlock
        planes = [scaled(channels, variant.width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, planes[0], 3, padding=1, bias=variant.conv_bias)  # (N, 16, H, W)
        # A norm stands behind the first convolution, or, with pre-activation, behind the last block.
        self.bn1 = None if variant.preactivation else nn.BatchNorm2d(planes[0])
        self.layer1 = stage(block, planes[0], planes[0], num_blocks, stride=1, variant=variant)  # (N, 16, H, W)
        self.layer2 = stage(block, planes[0], planes[1], num_blocks, stride=2, variant=variant)  # (N, 32, H / 2, W / 2)
        self.layer3 = stage(block, planes[1], planes[2], num_blocks, stride=2, variant=variant)  # (N, 64, H / 4, W / 4)
        self.bn_last = nn.BatchNorm2d(planes[2]) if variant.preactivation else None
        self.relu = variant.new_activation()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(variant.dropout)
        self.fc = nn.Linear(planes[2], num_classes)
        initialise(self, variant)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, channels, H, W)``."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.relu(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.bn_last is not None:
            x = self.relu(self.bn_last(x))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """The four-stage networks of He et al. 2015, table 1: ``(N, channels, H, W) -> (N, num_classes)``.

    ``stem="cifar"``: one 3x3 convolution at full resolution, for 32x32 images; ``stem="imagenet"``: 7x7 stride 2 and
    max-pooling, the network of the paper and of torchvision. Raises ``ValueError`` for a depth that is not in
    `RESNET_STAGES`.
    """

    def __init__(
        self,
        depth: int,
        variant: Variant = OPTION_B,
        *,
        stem: Stem = "cifar",
        num_classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in RESNET_STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, RESNET_STAGES))}, got {depth}")
        block: type[Block]
        block, num_blocks = RESNET_STAGES[depth]
        block = PREACTIVATED[block] if variant.preactivation else block
        planes = [scaled(channels, variant.width) for channels in (64, 128, 256, 512)]
        outplanes = [channels * block.expansion for channels in planes]
        if stem == "cifar":
            self.conv1 = nn.Conv2d(channels, planes[0], 3, padding=1, bias=variant.conv_bias)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, planes[0], 7, stride=2, padding=3, bias=variant.conv_bias)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # A norm stands behind the first convolution, or, with pre-activation, behind the last block.
        self.bn1 = None if variant.preactivation else nn.BatchNorm2d(planes[0])
        self.layer1 = stage(block, planes[0], planes[0], num_blocks[0], stride=1, variant=variant)
        self.layer2 = stage(block, outplanes[0], planes[1], num_blocks[1], stride=2, variant=variant)
        self.layer3 = stage(block, outplanes[1], planes[2], num_blocks[2], stride=2, variant=variant)
        self.layer4 = stage(block, outplanes[2], planes[3], num_blocks[3], stride=2, variant=variant)
        self.bn_last = nn.BatchNorm2d(outplanes[3]) if variant.preactivation else None
        self.relu = variant.new_activation()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(variant.dropout)
        self.fc = nn.Linear(outplanes[3], num_classes)
        initialise(self, variant)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of images ``(N, channels, H, W)``."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.relu(self.bn1(x))
        x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.bn_last is not None:
            x = self.relu(self.bn_last(x))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


def stage(
    block: type[Block], inplanes: int, planes: int, num_blocks: int, *, stride: int, variant: Variant
) -> nn.Sequential:
    """Stack ``num_blocks`` blocks, the first with ``stride`` and, where the shape changes, a shortcut that fits."""
    outplanes = planes * block.expansion
    changes_shape = stride != 1 or inplanes != outplanes
    downsample = projection(inplanes, outplanes, stride, variant) if changes_shape and variant.residual else None
    blocks = [block(inplanes, planes, stride, downsample, variant)]
    blocks += [block(outplanes, planes, 1, None, variant) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


def projection(inplanes: int, outplanes: int, stride: int, variant: Variant) -> nn.Module:
    """The shortcut of a block that changes the shape: zero padding (A), or a 1x1 convolution with a norm (B)."""
    if variant.shortcut == "A":
        return PadShortcut(inplanes, outplanes, stride)
    kind = PickedConv2d if inplanes < ONEDNN_BLOCK and stride != 1 else nn.Conv2d
    conv = kind(inplanes, outplanes, 1, stride=stride, bias=variant.conv_bias)
    if variant.preactivation:  # the norm of the next block follows
        return nn.Sequential(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(outplanes))


def scaled(channels: int, width: float) -> int:
    """Channels times the width multiplier, rounded, at least one."""
    return max(1, round(channels * width))


def initialise(model: nn.Module, variant: Variant) -> None:
    """Draw the weights of ``model`` in place; norms keep scale 1 and shift 0.

    ``he``: convolutions normal with variance ``gain**2 / fan_out`` (He et al. 2015, arXiv 1502.01852, as in
    torchvision), the classifier as PyTorch draws it; ``glorot``: both uniform (Glorot and Bengio 2010); ``default``:
    both PyTorch's own.
    """
    for module in model.modules():
        if variant.init == "he" and isinstance(module, nn.Conv2d):
            gain = nn.init.calculate_gain(variant.activation)
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=gain / math.sqrt(fan_out))
        elif variant.init == "glorot" and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if variant.zero_init_residual:
        for module in model.modules():
            if isinstance(module, Block):
                module.zero_residual()
