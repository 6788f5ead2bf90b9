"""The least memory that a run takes, from its configuration alone: what is sure not to fit is refused at once.

All numbers are lower bounds: of tensors that exist at the same time, the large ones, and nothing that PyTorch needs
besides. Without torch; tests compare them with the networks themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resnet_train.config.dataset import DatasetConfig, SyntheticConfig, image_size
from resnet_train.config.model import ModelConfig, ResNetConfig
from resnet_train.config.optim import AdamWConfig, SGDConfig
from resnet_train.config.run import Config


@dataclass(frozen=True)
class Need:
    """Memory that one part of a run takes."""

    num_bytes: int
    what: str  # in words, with the numbers that it follows from
    key: str  # of the configuration, which makes it large
    fix: str


@dataclass(frozen=True)
class Convolution:
    """One convolution: channels, size of its kernel, and pixels of one side of what it reads."""

    inplanes: int
    planes: int
    kernel: int
    size: int


def data_need(dataset: DatasetConfig, num_images: int) -> Need:
    """The images of all splits in host memory, one byte a channel, and their labels."""
    size = image_size(dataset)
    images = num_images * (dataset.channels * size * size + 8)
    what, key, patterns = f"{num_images:,} images of {size}x{size}", "dataset.image_size", 0
    if isinstance(dataset, SyntheticConfig):
        patterns = 12 * size * size * dataset.num_classes
        key = "dataset.num_train" if images > patterns else "dataset.num_classes"
        what += f" in {dataset.num_classes:,} classes"
    return Need(images + patterns, what, key, "take fewer or smaller ones")


def known_data_need(dataset: DatasetConfig) -> Need | None:
    """`data_need` of synthetic images, of which there may be any number."""
    return data_need(dataset, dataset.num_train + dataset.num_test) if isinstance(dataset, SyntheticConfig) else None


def weights_need(config: Config) -> Need:
    """Weights and gradients in float32, with what the optimizer and the moving average keep of each weight.

    Of frozen ones only they themselves are sure: which modules ``freeze`` names is known to the network alone.
    """
    weights = sum(one.kernel**2 * one.inplanes * one.planes for one in convolutions(config.model, 4))
    match config.optim:
        case AdamWConfig():
            kept = 2
        case SGDConfig():
            kept = int(config.optim.momentum > 0)
        case _:
            kept = 0
    copies = (1 if config.freeze else 2 + kept) + (config.ema_decay is not None)
    model = config.model
    return Need(
        4 * weights * copies,
        f"{copies} copies of {weights / 1e6:,.0f}M weights or more (depth={model.depth}, width={model.width:g})",
        "model.width" if model.width > 1 else "model.depth",
        "make the network smaller",
    )


def activations_need(config: Config) -> Need:
    """What every convolution has read, which its gradient needs, for one micro-batch; two bytes a value at least.

    Frozen ones have none to compute: then nothing is sure.
    """
    size = image_size(config.dataset)
    values = sum(one.inplanes * one.size**2 for one in convolutions(config.model, size))
    images = 0 if config.freeze else config.batch_size // config.accumulate
    return Need(
        2 * values * images,
        f"what the layers keep of {images:,} images of {size}x{size}",
        "batch_size",
        "make it smaller, or split each batch with a larger accumulate",
    )


BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def convolutions(model: ModelConfig, size: int) -> Iterator[Convolution]:
    """Those in the blocks; the first convolution and the shortcuts, a few percent, are left out."""
    blocks: tuple[int, ...]
    if isinstance(model, ResNetConfig):
        blocks, first, expansion = BASIC.get(model.depth) or BOTTLENECKS[model.depth], 64, 4 if model.depth > 34 else 1
        size = -(-size // 4) if model.stem == "imagenet" else size
    else:
        blocks, first, expansion = ((model.depth - 2) // 6,) * 3, 16, 1
    inplanes = max(1, round(first * model.width))
    for number, num_blocks in enumerate(blocks):
        planes = max(1, round(first * 2**number * model.width))
        for block in range(num_blocks):
            before, size = size, -(-size // 2) if number and not block else size
            if expansion == 1:
                yield Convolution(inplanes, planes, 3, before)
                yield Convolution(planes, planes, 3, size)
            else:
                yield Convolution(inplanes, planes, 1, before)
                yield Convolution(planes, planes, 3, before)
                yield Convolution(planes, 4 * planes, 1, size)
            inplanes = planes * expansion
