"""Where the weights come from that a run does not draw: its own checkpoint, or another run."""

from __future__ import annotations

import logging
from pathlib import Path

from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_weights
from resnet_train.runs.console import count
from resnet_train.runs.resume import Notice, Resumed
from resnet_train.training.clock import Clock
from resnet_train.training.state import TrainState, load_weights


def restore(state: TrainState, clock: Clock, resumed: Resumed, *, total_steps: int) -> list[Notice]:
    """Load a checkpoint into ``state`` and ``clock``, strictly; raises `ConfigError` where it does not fit.

    Returns what to announce.
    """
    try:
        state.load_state_dict(resumed.content["state"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the checkpoint {resumed.path} is of another network or optimizer: {' '.join(str(error).split())[:300]}"
        ) from error
    clock.load_state_dict(resumed.content["clock"])
    if state.step > total_steps:
        raise ConfigError(
            f"the run in {resumed.path.parent.parent} has made {state.step} steps already, expected at most the "
            f"{total_steps} that are asked for; give it more epochs, or start a new run"
        )
    done = f"resuming from {resumed.path}: {count(state.step)} steps are done"
    return [*resumed.notices, (logging.INFO, done)]


def begin_with(state: TrainState, path: Path) -> list[Notice]:
    """Take the weights of another run; raises `ConfigError` where they do not fit. Returns what to announce."""
    weights = read_weights(path)
    try:
        left = load_weights(state.model, weights)
    except ValueError as error:
        raise ConfigError(f"init_from: the weights in {path} are of another network: {error}") from error
    if state.ema is not None:
        state.ema.load_state_dict(state.model.state_dict())
    taken = f"beginning with {len(weights) - len(left)} of the {len(weights)} tensors of {path}"
    return [(logging.INFO, text) for text in (taken, *(f"left as initialised: {text}" for text in left))]
