"""Which network a state dict is of, told by names and shapes alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from resnet_train.config.model import MAX_DEPTH, MAX_WIDTH
from resnet_train.models.resnet import RESNET_STAGES, Bottleneck, CifarResNet, ResNet
from resnet_train.models.variant import Shortcut, Stem, Variant

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognised:
    """What names and shapes say of a network; not whether it is plain, nor its activation."""

    family: type[CifarResNet] | type[ResNet]
    depth: int
    stem: Stem  # cifar in the family that has no other
    shortcut: Shortcut
    width: float
    preactivation: bool
    conv_bias: bool
    num_classes: int
    channels: int = 3  # of the images


def recognise(shapes: Shapes) -> Recognised | None:
    """The network that has exactly tensors of these ``shapes``; None where none here has.

    Counts of batches, which files from before PyTorch 0.4.1 lack, are not looked at.
    """
    found = _guess(shapes)
    return found if found is not None and _counted(_shapes_of(found)) == _counted(shapes) else None


def _guess(shapes: Shapes) -> Recognised | None:
    """By the first convolution, the classifier, and the number of blocks of each stage."""
    conv, classifier = shapes.get("conv1.weight", ()), shapes.get("fc.weight", ())
    if len(conv) != 4 or conv[1] not in (1, 3) or len(classifier) != 2:
        return None
    blocks: dict[str, set[str]] = defaultdict(set)
    for found in filter(None, (re.match(r"layer(\d)\.(\d+)\.", name) for name in shapes)):
        blocks[found[1]].add(found[2])
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))
    bottlenecks = "layer1.0.conv3.weight" in shapes
    widest = 512 * (Bottleneck.expansion if bottlenecks else 1)
    family: type[CifarResNet] | type[ResNet] = ResNet
    depths = [
        depth
        for depth, (block, stages) in RESNET_STAGES.items()
        if (stages, block is Bottleneck) == (counts, bottlenecks)
    ]
    if len(counts) == 3:
        family, depths, widest = CifarResNet, [6 * counts[0] + 2], 64
    width = classifier[1] / widest  # the last stage tells it best: channels are rounded
    if not depths or not 0 < width <= MAX_WIDTH or depths[0] > MAX_DEPTH:
        return None
    return Recognised(
        family,
        depths[0],
        stem="imagenet" if conv[-1] == 7 else "cifar",
        shortcut="B" if "layer2.0.downsample.0.weight" in shapes else "A",
        width=width,
        preactivation="bn_last.weight" in shapes,
        conv_bias="conv1.bias" in shapes,
        num_classes=classifier[0],
        channels=conv[1],
    )


def _shapes_of(network: Recognised) -> Shapes:
    variant = Variant(
        network.shortcut,
        width=network.width,
        preactivation=network.preactivation,
        conv_bias=network.conv_bias,
        init="default",
    )
    with torch.device("meta"):
        sizes = {"num_classes": network.num_classes, "channels": network.channels}
        if network.family is CifarResNet:
            model: CifarResNet | ResNet = CifarResNet(network.depth, variant, **sizes)
        else:
            model = ResNet(network.depth, variant, stem=network.stem, **sizes)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _counted(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.endswith(".num_batches_tracked")}
