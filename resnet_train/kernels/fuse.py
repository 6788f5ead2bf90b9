"""Puts faster operations into a network that was built and initialised, by exchanging the classes of its modules.

The new classes have another ``forward`` and no state, as `torch.nn.utils.parametrize` does it: names, order, weights,
state dicts, optimizers and copies do not notice. What is exchanged are the blocks and networks of `resnet_train.models`
and, in them, convolutions and norms for those of a backend (``LEAVES`` of `kernels.cpu`, `kernels.cuda`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.models.preact import PreActBasicBlock, PreActBottleneck
from resnet_train.models.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet

Classes = Mapping[type[nn.Module], type[nn.Module]]


def fuse(model: nn.Module, leaves: Classes) -> None:
    """Exchange the classes of the modules of ``model`` in place; a second time changes nothing.

    ``leaves``: what takes the place of `torch.nn.BatchNorm2d`, a `FusedBatchNorm2d`, and of `torch.nn.Conv2d`.
    Whatever is not known exactly is left alone, with the modules in it: subclasses, other activations, other norms.
    Hooks on the norms and activations of a fused block are not called.
    """
    for module in model.modules():
        if type(module) in FUSED and has_batch_norm_and_relu(module):
            module.__class__ = FUSED[type(module)]
            for child in module.children():
                for leaf in (child, *child.children()):  # those of a shortcut lie in an nn.Sequential
                    leaf.__class__ = leaves.get(type(leaf), type(leaf))


def has_batch_norm_and_relu(module: nn.Module) -> bool:
    """Whether a block or network has the norms and the activation that the fused ones compute."""
    norms = [child for name, child in module.named_children() if name.startswith("bn")]
    return type(module.relu) is nn.ReLU and all(type(norm) is nn.BatchNorm2d for norm in norms)


class FusedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that can take the ReLU behind it along. Backends override `norm_relu`."""

    def norm_relu(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """``relu(norm(x) + shortcut)``, all ``(N, C, H, W)``: here one operation after another, as PyTorch has them."""
        out = self(x)
        if shortcut is not None:
            out = out + shortcut
        return F.relu(out, inplace=True)


class FusedBasicBlock(BasicBlock):
    """The same by two operations instead of five, beside the convolutions."""

    bn1: FusedBatchNorm2d
    bn2: FusedBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """See `BasicBlock`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn1.norm_relu(self.conv1(x))
        return self.bn2.norm_relu(self.conv2(out), shortcut if self.residual else None)


class FusedBottleneck(Bottleneck):
    """The same by three operations instead of seven, beside the convolutions."""

    bn1: FusedBatchNorm2d
    bn2: FusedBatchNorm2d
    bn3: FusedBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """See `Bottleneck`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn1.norm_relu(self.conv1(x))
        out = self.bn2.norm_relu(self.conv2(out))
        return self.bn3.norm_relu(self.conv3(out), shortcut if self.residual else None)


class FusedPreActBasicBlock(PreActBasicBlock):
    """The same with norm and ReLU in one."""

    bn1: FusedBatchNorm2d
    bn2: FusedBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """See `PreActBasicBlock`."""
        out: Tensor = self.bn1.norm_relu(x)
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.bn2.norm_relu(out))
        return out + shortcut if self.residual else out


class FusedPreActBottleneck(PreActBottleneck):
    """The same with norm and ReLU in one."""

    bn1: FusedBatchNorm2d
    bn2: FusedBatchNorm2d
    bn3: FusedBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """See `PreActBottleneck`."""
        out: Tensor = self.bn1.norm_relu(x)
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.bn2.norm_relu(out))
        out = self.conv3(self.bn3.norm_relu(out))
        return out + shortcut if self.residual else out


class FusedCifarResNet(CifarResNet):
    """The same with norm and ReLU in one."""

    bn1: FusedBatchNorm2d | None
    bn_last: FusedBatchNorm2d | None

    def forward(self, x: Tensor) -> Tensor:
        """See `CifarResNet`."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.bn1.norm_relu(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        if self.bn_last is not None:
            x = self.bn_last.norm_relu(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


class FusedResNet(ResNet):
    """The same with norm and ReLU in one."""

    bn1: FusedBatchNorm2d | None
    bn_last: FusedBatchNorm2d | None

    def forward(self, x: Tensor) -> Tensor:
        """See `ResNet`."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.bn1.norm_relu(x)
        x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.bn_last is not None:
            x = self.bn_last.norm_relu(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


FUSED: Classes = {
    BasicBlock: FusedBasicBlock,
    Bottleneck: FusedBottleneck,
    PreActBasicBlock: FusedPreActBasicBlock,
    PreActBottleneck: FusedPreActBottleneck,
    CifarResNet: FusedCifarResNet,
    ResNet: FusedResNet,
}
