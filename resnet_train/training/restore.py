"""Where the weights come from that a run does not draw: its own checkpoint, or another run."""

from __future__ import annotations

import logging
from pathlib import Path

from resnet_train.errors import ConfigError
from resnet_train.runs.console import count, printable
from resnet_train.runs.history import History
from resnet_train.runs.resume import Resumed
from resnet_train.runs.saved import Notice
from resnet_train.runs.weights import read_weights
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


def begin_with(state: TrainState, path: Path) -> list[Notice]:
    """Take the weights of another run; raises `ConfigError` where they do not fit. Returns what to announce."""
    weights = read_weights(path)
    try:
        left = load_weights(state.model, weights)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"init_from: the weights in {path} are of another network: {reason}") from error
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    taken = f"beginning with {len(weights) - len(left)} of the {len(weights)} tensors of {path}"
    return [(logging.INFO, text) for text in (taken, *(f"left as initialised: {text}" for text in left))]
