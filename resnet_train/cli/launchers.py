"""What Hydra's plugins change about a sweep: which promises hold with them, and which do not."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from resnet_train.cli.overrides import values_of
from resnet_train.errors import ConfigError

BASIC = "basic"


def launcher_of(hydra: DictConfig) -> str:
    """The option of hydra/launcher: ``basic`` runs the jobs one after the other, in this process."""
    return str(hydra.runtime.choices["hydra/launcher"])


def sweeper_of(hydra: DictConfig) -> str:
    """The option of hydra/sweeper: ``basic`` runs every combination."""
    return str(hydra.runtime.choices["hydra/sweeper"])


def forward(signum: int) -> None:
    """Let the processes of jobs save and stop too: SIGTERM to those that did not get ``signum`` themselves.

    What a terminal sends (Ctrl-C) goes to all processes of its group. Found by Linux's /proc; elsewhere jobs run to
    their end, and no other begins.
    """
    of_terminal = signal.Signals(signum).name in ("SIGINT", "SIGHUP", "SIGQUIT")
    waiting = _children(os.getpid())
    while waiting:
        child = waiting.pop()
        with suppress(OSError):
            waiting += _children(child)
            if not (of_terminal and os.getpgid(child) == os.getpgid(0)):
                os.kill(child, signal.SIGTERM)


def _children(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text(encoding="ascii").split())
    return found


def plugin_overrides(hydra: DictConfig, overrides: Sequence[str], *, max_failures: int | None) -> list[str]:
    """Overrides that make the chosen plugins keep this program's promises; raises `ConfigError` where they cannot.

    A sweeper that optimises gets the direction: the objective is an accuracy, and Optuna's plugin minimises unless
    told otherwise. It is told to outlive failed jobs too.
    """
    if max_failures is not None and launcher_of(hydra) != BASIC:
        raise ConfigError(
            f"max_failures: hydra/launcher={launcher_of(hydra)} runs all jobs whatever becomes of them; "
            f"leave max_failures out, or take hydra/launcher={BASIC}"
        )
    sweeper, found = hydra.sweeper, []
    if "direction" in sweeper:
        direction = [value for value in values_of(overrides, "hydra.sweeper.direction") if value != "maximize"]
        if direction:
            raise ConfigError(
                f"hydra.sweeper.direction: jobs return an accuracy, which is to be maximized, got {direction[0]}; "
                f"leave it out"
            )
        found.append("hydra.sweeper.direction=maximize")
    if "max_failure_rate" in sweeper and not values_of(overrides, "hydra.sweeper.max_failure_rate"):
        found.append("hydra.sweeper.max_failure_rate=1.0")
    return found
