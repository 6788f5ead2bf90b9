"""What a run directory says of its run: the newest whole checkpoint first, the readable copies beside it after that.

All of it may have been written by a stranger, or cut by a power failure. Needs no torch.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

from resnet_train.config.durations import to_steps
from resnet_train.config.older import with_former
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint_file import newest_content, numbered, steps_of
from resnet_train.runs.directory import (
    CONFIG,
    INVOCATION,
    NOT_SAVED,
    Invocation,
    invocation_of,
    read_config,
    read_invocation,
)
from resnet_train.runs.summary import FILE as SUMMARY
from resnet_train.runs.summary import Summary, read_summary

Notice = tuple[int, str]  # logging level and text


def check_there(path: Path, *, key: str) -> None:
    """Raise `ConfigError` where there is nothing that could hold weights."""
    if not path.exists():
        raise ConfigError(
            f"{key}: expected a run directory or a file of weights, got {str(path)!r}, which does not exist; look at "
            f"its name (paths begin in {Path.cwd()})"
        )


def saved_config(directory: Path) -> dict[str, Any] | None:
    """The configuration of the run in ``directory``, plain: of its newest whole checkpoint, else of ``config.yaml``.

    None where there is neither, and the run begins.
    """
    found = config_of(newest_content(directory / "checkpoints"))
    if found is None:
        try:
            found = config_of({"config": read_config(directory)})
        except ConfigError:
            return None  # without a checkpoint there is nothing to lose
    return found


def config_of(content: dict[str, Any] | None) -> dict[str, Any] | None:
    """The configuration in a checkpoint; None where there is nothing of the kind."""
    config = None if content is None else content.get("config")
    return config if isinstance(config, dict) and _has_text_keys(config) else None


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_has_text_keys, value))
    if not isinstance(value, dict):
        return True
    return all(isinstance(key, str) and _has_text_keys(inner) for key, inner in value.items())


def saved_invocation(directory: Path) -> Invocation:
    """The overrides that started the run: of ``invocation.json``, or of the checkpoint where that has none."""
    try:
        found = read_invocation(directory)
    except ConfigError:
        found = Invocation([], [])
    if not found.overrides:
        content = newest_content(directory / "checkpoints", unseen=True)
        found = kept_invocation(content or {}) or found
    return found


def kept_invocation(content: dict[str, Any]) -> Invocation | None:
    """The overrides in a checkpoint; None where it has none."""
    try:
        return invocation_of(content["invocation"])
    except (KeyError, TypeError, ValueError):
        return None


def broken_copies(directory: Path, content: dict[str, Any]) -> list[Notice]:
    """Which files are corrupt or missing; they are made of the checkpoint with ``content`` again."""
    found = []
    for name, read in ((CONFIG, read_config), (INVOCATION, read_invocation), (SUMMARY, read_summary)):
        path = directory / name
        there = path.exists() or path.is_symlink()
        kept = name == CONFIG or (name == INVOCATION and kept_invocation(content) is not None)
        state = "missing" if kept and not there else ""
        try:
            if there and ((said := read(directory)) is None or (name == CONFIG and _differ(said, config_of(content)))):
                state = "corrupt or old"
        except ConfigError:
            state = "corrupt"
        if state:
            how = "written anew at the end of the run" if name == SUMMARY else "written anew from the checkpoint"
            found.append((logging.WARNING, f"{path} was {state}: {how}"))
    return found


def _differ(said: Any, saved: dict[str, Any] | None) -> bool:
    """Whether two configurations differ in more than what is not saved."""
    return saved is not None and with_former(said) | NOT_SAVED != with_former(saved) | NOT_SAVED


def is_over(directory: Path, summary: Summary | None = None, config: dict[str, Any] | None = None) -> bool:
    """Whether the run finished with as many steps as ``config`` asks for, or stopped early as it asks for.

    Its newest checkpoint has as many too.

    The summary alone is not enough: it stays as it was while a finished run is made longer. ``config`` is by default
    the one in that checkpoint, whose checksum is not looked at.
    """
    summary = summary or read_summary(directory)
    if summary is None or summary.status != "finished":
        return False
    newest = numbered(directory / "checkpoints")
    if not newest:  # somebody removed them, and left the result
        return config is None or _ends(config, summary)
    if config is None:
        config = config_of(newest_content(directory / "checkpoints", unseen=True)) or {}
    return steps_of(newest[0]) == summary.steps and _ends(config, summary)


def _ends(config: dict[str, Any], summary: Summary) -> bool:
    """Whether a run as ``config`` asks for it has nothing to do after the steps of ``summary``."""
    early = config.get("early_stop")
    patience = early.get("patience") if isinstance(early, dict) else None
    if isinstance(patience, int) and summary.waited >= patience > 0:
        return True
    return summary.steps == length(config, summary)


def length(config: dict[str, Any], summary: Summary) -> int | None:
    """Steps that a saved configuration asks for; None where it does not say so."""
    try:
        if config["steps"] is not None:
            return int(config["steps"])
        return to_steps(config["epochs"], Fraction(summary.images["train"], config["batch_size"]))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
