"""Pre-activation blocks: norm and activation come before each convolution (He et al. 2016, arXiv 1603.05027).

Figure 4e, "full pre-activation". The sum at the end of a block is not activated, so the shortcuts of a stage form a
path without any operation on it. A block that changes the shape feeds its shortcut from the activated input.
"""

from __future__ import annotations

from torch import Tensor, nn

from resnet_train.models.variant import Variant


class PreActBasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)``.

    ``downsample``: the shortcut of a block that changes the shape, else None.
    """

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, variant: Variant) -> None:
        super().__init__()
        bias = variant.conv_bias
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = variant.new_activation()
        self.downsample = downsample
        self.residual = variant.residual

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inplanes, H, W) -> (N, planes, H / stride, W / stride)``."""
        out: Tensor = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        return out + shortcut if self.residual else out

    def zero_residual(self) -> None:
        """Make the block the identity: its last convolution gives zero."""
        zero(self.conv2)


class PreActBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: ``(N, inplanes, H, W) -> (N, 4 * planes, H / stride, W / stride)``.

    The stride sits in the 3x3 convolution; the arguments are those of `PreActBasicBlock`.
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None, variant: Variant) -> None:
        super().__init__()
        bias = variant.conv_bias
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(planes)
        self.relu = variant.new_activation()
        self.downsample = downsample
        self.residual = variant.residual

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inplanes, H, W) -> (N, 4 * planes, H / stride, W / stride)``."""
        out: Tensor = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + shortcut if self.residual else out

    def zero_residual(self) -> None:
        """Make the block the identity: its last convolution gives zero."""
        zero(self.conv3)


def zero(conv: nn.Conv2d) -> None:
    """Set weights and bias of ``conv`` to zero."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
