"""Weights that do not fit a network: a table of what differs, and the overrides that make the network fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from resnet_train.config.store import options_of
from resnet_train.errors import ConfigError
from resnet_train.models.recognise import Recognised, recognise
from resnet_train.models.resnet import CifarResNet
from resnet_train.runs.console import count, printable

MOST_ROWS = 20
DATASETS = {10: "dataset=cifar10", 100: "dataset=cifar100"}  # classes: the data set that such weights are likely of


@dataclass(frozen=True)
class Difference:
    """A tensor that is on one side only, or has another shape there."""

    name: str
    expected: tuple[int, ...] | None  # None: the network has no such tensor
    got: tuple[int, ...] | None  # None: the weights have none

    @property
    def is_shape(self) -> bool:
        """Whether both sides have it."""
        return self.expected is not None and self.got is not None


def differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[Difference]:
    """In what ``weights`` differ from a network's ``own``: other shapes first, then what is missing, then the rest.

    Counts of batches may be missing: older versions of PyTorch had none, and nothing here reads them.
    """
    found = [
        Difference(name, *(tuple(side[name].shape) if name in side else None for side in (own, weights)))
        for name in (*own, *(name for name in weights if name not in own))
        if name in weights or not name.endswith(".num_batches_tracked")
    ]
    found = [one for one in found if one.expected != one.got]
    return sorted(found, key=lambda one: (not one.is_shape, one.expected is None))


def misfit(
    source: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], found: Sequence[Difference]
) -> ConfigError:
    """What to raise for ``found``; ``source`` begins the line: ``init_from: the weights in FILE``."""
    first, number = found[0], f"{count(len(found))} tensor{'s do' if len(found) > 1 else ' does'} not fit"
    return ConfigError(
        f"{source} are of another network: {number}, first {printable(first.name)} (expected "
        f"{_shown(first.expected, 'none')}, got {_shown(first.got, 'none')}); {advice(own, weights, found)}",
        details=table(found),
    )


def table(found: Sequence[Difference]) -> str:
    """Names and shapes, at most `MOST_ROWS` of them."""
    rows = [("tensor", "expected", "got")]
    rows += [(printable(one.name), _shown(one.expected, "none"), _shown(one.got, "none")) for one in found[:MOST_ROWS]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines + ([f"and {count(len(found) - MOST_ROWS)} more"] if len(found) > MOST_ROWS else []))


def _shown(shape: tuple[int, ...] | None, otherwise: str) -> str:
    return otherwise if shape is None else str(shape)


def advice(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], found: Sequence[Difference]) -> str:
    """What to do: overrides, where these are weights of a network that can be had here."""
    mine, theirs = (recognise({name: tuple(tensor.shape) for name, tensor in side.items()}) for side in (own, weights))
    if theirs is None:
        return "no network here has exactly these tensors; give the weights of one that has"
    wanted = overrides(mine, theirs)
    if mine is not None and mine.channels != theirs.channels:
        wanted.append(f"dataset.channels={theirs.channels}")
    if any(one.name == "fc.bias" for one in found):
        wanted.append(DATASETS.get(theirs.num_classes, f"a data set of {theirs.num_classes} classes"))
    return f"try {' '.join(wanted)}"


def overrides(mine: Recognised | None, theirs: Recognised) -> list[str]:
    """Those that make the network ``mine`` into ``theirs``; what was given beside ``model=`` counts as given again."""
    found: list[str] = []
    other_option = mine is None or mine.family is not theirs.family
    if mine is None or (mine.family, mine.depth) != (theirs.family, theirs.depth):
        option = f"resnet{theirs.depth}"
        if option in options_of("model"):
            found, other_option = [f"model={option}"], True
        else:
            found = [*["model=resnet20"] * other_option, f"model.depth={theirs.depth}"]
    for key, value in usual(theirs).items():
        wanted, now = getattr(theirs, key), getattr(mine, key, value)
        kept = mine is not None and now != usual(mine)[key]
        if (wanted != value or kept) if other_option else wanted != now:
            found.append(f"model.{key}={str(wanted).lower() if isinstance(wanted, bool) else wanted}")
    return found


def usual(network: Recognised) -> dict[str, object]:
    """Values of the keys of ``model`` that a network of this family has where none is given."""
    shortcut = "A" if network.family is CifarResNet else "B"
    return {"stem": "cifar", "shortcut": shortcut, "width": 1, "preactivation": False, "conv_bias": False}
