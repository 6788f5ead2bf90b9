"""``resnet-train ... summary=true``: the network on paper, as a table whose totals are those of the papers.

Up to `MOST_LISTED` convolutions each has a row; deeper networks have one for all equal blocks of a stage, as in He et
al. 2015, table 1. Nothing is trained, read or written; of the user's own images the class folders are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.config.dataset import image_size
from resnet_train.config.run import Config
from resnet_train.data.available import num_classes
from resnet_train.runs.checkpoint_file import newest_content
from resnet_train.runs.console import count, printable

if TYPE_CHECKING:
    from resnet_train.models.count import Layer

MOST_LISTED = 40  # convolutions: ResNet-34 has 36, and fits two screens
HEADER = (
    ("", "layer"),
    ("", "output"),
    ("", "parameters"),
    ("", "multiply-adds"),
    ("receptive", "field"),
    ("", "jump"),
)
LEGEND = """\
Parameters include those of the norm beside a convolution; a shortcut without
parameters has no row. Multiply-adds: of convolutions and the classifier, for
one image. Receptive field: side, in pixels, of the part of the image that a
value depends on, along the longest path; it may exceed the image, which is
padded. Jump: pixels of the image from one value to the next. /2: stride 2."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    layers: Sequence[Layer]

    def cells(self) -> tuple[str, ...]:
        """Text for the columns of `HEADER`."""
        last = self.layers[-1]
        pooled = len(last.shape) == 1 or last.shape[1:] == (1, 1)
        return (
            self.name,
            "x".join(map(str, last.shape)),
            count(sum(layer.parameters for layer in self.layers)),
            count(sum(layer.multiply_adds for layer in self.layers)),
            count(last.receptive_field),
            "" if pooled else count(last.jump),
        )


def network_table(config: Config, directory: Path | None = None) -> str:
    """The network of ``config`` as a table of at most 80 columns; the classes are those of the run in ``directory``.

    Raises `ConfigError` where the number of classes cannot be told.
    """
    import torch

    from resnet_train.models.build import build_model
    from resnet_train.models.count import num_parameters, trace

    classes = (directory and saved_num_classes(directory)) or num_classes(config.dataset)
    size, channels = image_size(config.dataset), config.dataset.channels
    with torch.device("meta"):  # shapes, no data
        model = build_model(config.model, num_classes=classes, seed=config.seed, channels=channels)
    layers = with_their_norms(trace(model, size))
    parameters, multiply_adds = num_parameters(model), sum(layer.multiply_adds for layer in layers)
    assert parameters == sum(layer.parameters for layer in layers), "a parameter that no row counts"
    title = f"{printable(config.model.name)} for {printable(config.dataset.name)}: images {channels}x{size}x{size}, "
    total = ("total", "", count(parameters), count(multiply_adds), "", "")
    large = f"{multiply_adds / 1e9:.3g} G" if multiply_adds >= 1e9 else f"{multiply_adds / 1e6:.3g} M"
    short = f"{parameters / 1e6:.2f} M parameters, {large} multiply-adds per image"
    body = [row.cells() for row in rows(layers)]
    return "\n".join([f"{title}{classes} classes\n", *aligned(body, total), "", short, "", LEGEND])


def saved_num_classes(directory: Path) -> int | None:
    """Number of classes of the run in ``directory``, by its newest checkpoint; None where that does not say so."""
    classes = (newest_content(directory / "checkpoints", unseen=True) or {}).get("classes")
    return len(classes) or None if isinstance(classes, list) else None


def with_their_norms(layers: Sequence[Layer]) -> list[Layer]:
    """``layers`` without the norms beside a convolution, whose parameters that has too."""
    names = {layer.name for layer in layers}
    owners = {layer.name: owner for layer in layers if (owner := norms_convolution(layer.name)) in names}
    added = {owners[layer.name]: layer.parameters for layer in layers if layer.name in owners}
    return [
        replace(layer, parameters=layer.parameters + added.get(layer.name, 0))
        for layer in layers
        if layer.name not in owners
    ]


def norms_convolution(name: str) -> str | None:
    """``layer1.0.conv2`` for ``layer1.0.bn2``; None for what is no norm beside a convolution."""
    owner = re.sub(r"\bdownsample\.1$", "downsample.0", re.sub(r"\bbn(?=\d$)", "conv", name))
    return owner if owner != name else None


def rows(layers: Sequence[Layer]) -> Iterator[Row]:
    """The rows: a stage first as a whole, then its layers, or its blocks."""
    listed = sum(layer.has_weights for layer in layers) <= MOST_LISTED
    for stage, of_stage in groupby(layers, key=lambda layer: layer.name.partition(".")[0]):
        found = list(of_stage)
        if len(found) == 1:
            yield Row(f"{stage} {kernels(found)}".rstrip(), found)
            continue
        blocks = [list(of_block) for _, of_block in groupby(found, key=lambda layer: layer.name.split(".")[1])]
        yield Row(f"{stage}, {len(blocks)} block{'s' * (len(blocks) > 1)}", found)
        yield from (layer_rows(found) if listed else block_rows(blocks))


def layer_rows(layers: Sequence[Layer]) -> Iterator[Row]:
    """A row for each layer of a stage."""
    for layer in layers:
        yield Row(f"  {layer.name.partition('.')[2].removesuffix('.0')} {kernels([layer])}", [layer])


def block_rows(blocks: Sequence[Sequence[Layer]]) -> Iterator[Row]:
    """A row for each run of equal blocks of a stage, its shortcut apart."""

    def contents(numbered: tuple[int, Sequence[Layer]]) -> list[tuple[object, ...]]:
        return [(layer.kernel, layer.stride, layer.shape, layer.parameters) for layer in numbered[1]]

    for _, run in groupby(enumerate(blocks), key=contents):
        (first, block), *others = run
        last = others[-1][0] if others else first
        shortcut = [layer for layer in block if ".downsample." in layer.name]
        path = [layer for layer in block if layer not in shortcut]
        together = [layer for _, more in [(first, path), *others] for layer in more]
        if shortcut:
            yield Row(f"  {first}.downsample {kernels(shortcut)}", shortcut)
        yield Row(f"  {first if first == last else f'{first}-{last}'} [{kernels(path)}]", together)


def kernels(layers: Sequence[Layer]) -> str:
    """``3x3/2, 3x3``: sizes of windows, with their strides; nothing for a classifier or a norm."""
    windows = [(layer.kernel, layer.stride) for layer in layers if len(layer.shape) == 3 and layer.name != "bn_last"]
    return ", ".join(f"{kernel}x{kernel}" + (f"/{stride}" if stride > 1 else "") for kernel, stride in windows)


def aligned(body: Sequence[Sequence[str]], total: Sequence[str]) -> list[str]:
    """Lines of a table between rules; names to the left, numbers to the right."""
    heads = list(zip(*HEADER, strict=True))
    widths = [max(map(len, column)) for column in zip(*heads, *body, total, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [*map(line, heads), rule, *map(line, body), rule, line(total)]
