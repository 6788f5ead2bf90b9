"""Where the weights come from that a run does not draw: its own checkpoint, or another run."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from resnet_train.errors import ConfigError
from resnet_train.runs.console import count, printable
from resnet_train.runs.data_identity import listed
from resnet_train.runs.history import History
from resnet_train.runs.resume import Resumed
from resnet_train.runs.saved import Notice
from resnet_train.runs.weights import read_weights_and_classes
from resnet_train.training.clock import Clock
from resnet_train.training.state import TrainState, load_weights


def restore(state: TrainState, clock: Clock, resumed: Resumed, *, total_steps: int) -> list[Notice]:
    """Load a checkpoint into ``state`` and ``clock``, strictly; raises `ConfigError` where it does not fit.

    Returns what to announce.
    """
    try:
        state.load_state_dict(resumed.content["state"])
        clock.load_state_dict(resumed.content["clock"])
    except Exception as error:  # what stands there may be anything, since the file may come from a stranger
        reason = printable(" ".join(str(error).split())[:300]) or type(error).__name__
        raise ConfigError(f"the checkpoint {resumed.path} is of another network or optimizer: {reason}") from error
    if state.step > total_steps:
        raise ConfigError(
            f"the run in {resumed.path.parent.parent} has made {state.step} steps already, expected at most the "
            f"{total_steps} that are asked for; give it more epochs, or start a new run"
        )
    done = f"resuming from {resumed.path}: {count(state.step)} steps are done"
    return [*resumed.notices, (logging.INFO, done)]


def load_history(resumed: Resumed, *, steps: int) -> History | None:
    """What was measured up to ``steps``; None where the checkpoint, of version 0.1, does not hold it.

    Raises `ConfigError` where that is corrupt.
    """
    if "history" not in resumed.content:
        return None
    try:
        return History.of(resumed.content["history"], steps=steps)
    except Exception as error:  # as above
        raise ConfigError(f"the checkpoint {resumed.path} is corrupt: its history is none of numbers") from error


def begin_with(state: TrainState, path: Path, *, classes: Sequence[str]) -> list[Notice]:
    """Take the weights of another run; raises `ConfigError` where they do not fit. Returns what to announce.

    Rows of the classifier go by the names of the ``classes``, where the other run is known to have any.
    """
    weights, theirs = read_weights_and_classes(path)
    weights, rows = rows_by_class(weights, theirs, own=state.model.state_dict(), classes=classes)
    weights, channels = for_channels(weights, own=state.model.state_dict())
    left = load_weights(state.model, weights, source=f"init_from: the weights in {path}")
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    taken = f"beginning with {len(weights) - len(left)} of the {len(weights)} tensors of {path}"
    if rows and not left:
        taken += f"; {rows}"
    if channels:
        taken += f"; {channels}"
    frozen = [not state.model.get_parameter(text.partition(" ")[0]).requires_grad for text in left]
    return [(logging.INFO, taken)] + [
        (logging.WARNING, f"freeze keeps random weights, left as initialised: {text}")
        if kept
        else (logging.INFO, f"left as initialised: {text}")
        for text, kept in zip(left, frozen, strict=True)
    ]


def for_channels(weights: dict[str, Tensor], *, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """``weights`` for images of as many channels as ``own`` takes, 1 or 3, and a few words on that.

    A grey image gives the same as three equal channels did, where these were normalised alike: the first convolution is
    summed over its channels, or divided among them.
    """
    theirs, ours = weights.get("conv1.weight"), own.get("conv1.weight")
    if theirs is None or ours is None or theirs.ndim != 4 or {theirs.shape[1], ours.shape[1]} != {1, 3}:
        return weights, ""
    if ours.shape[1] == 1:
        return weights | {"conv1.weight": theirs.sum(1, keepdim=True)}, "conv1 summed over its three input channels"
    return weights | {"conv1.weight": theirs.expand(-1, 3, -1, -1) / 3}, "conv1 divided among three input channels"


def rows_by_class(
    weights: dict[str, Tensor], theirs: Sequence[str] | None, *, own: dict[str, Tensor], classes: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
    """``weights`` with the rows of the classifier in the order of ``classes``, and a few words on that.

    ``theirs`` are the classes of ``weights``, in their order. Rows of other classes are those of ``own``.
    """
    names = [name for name in ("fc.weight", "fc.bias") if name in weights and name in own]
    if theirs is None or any(len(weights[name]) != len(theirs) for name in names):
        return weights, "rows of the classifier in their order, since the file does not name its classes"
    if any(weights[name].shape[1:] != own[name].shape[1:] for name in names):
        return weights, ""
    row_of = {unicodedata.normalize("NFC", name): row for row, name in enumerate(theirs)}
    rows = {row: row_of[name] for row, name in enumerate(classes) if name in row_of}
    mapped = {name: own[name].clone() for name in names}
    for tensor_name, tensor in mapped.items():
        for row, their_row in rows.items():
            tensor[row] = weights[tensor_name][their_row]
    left = [name for row, name in enumerate(classes) if row not in rows]
    text = f"{len(rows)} of the classifier's {len(classes)} rows, by the names of the classes"
    return weights | mapped, text + (f"; as initialised: {listed(left)}" if left else "")
