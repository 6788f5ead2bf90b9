"""Checks of one value each: all raise a `ConfigError` that says what was expected and what was given."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from resnet_train.config.durations import parse_duration
from resnet_train.errors import ConfigError


def number(
    key: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Check that ``value`` is finite and within the bounds."""
    bounds = {">=": at_least, ">": above, "<=": at_most, "<": below}
    fits = (
        abs(value) <= sys.float_info.max  # neither infinite nor NaN, nor a whole number beyond what a float holds
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    if not fits:
        if isinstance(value, int) and value > sys.float_info.max:
            bounds["<="] = sys.float_info.max
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)
        raise ConfigError(f"{key}: expected a number {wanted or 'that is finite'}, got {value}")


# Keys that take one of a few words. Completion offers them too.
CHOICES: dict[str, tuple[str, ...]] = {
    "channels_last": ("auto", "true", "false"),
    "compile": ("auto", "true", "false"),
    "dataset.augment.crop_mode": ("zeros", "reflect"),
    "expected.protocol.precision": ("fp32", "tf32", "bf16", "fp16", "unknown"),
    "expected.protocol.result": ("last", "best", "unknown"),
    "graph": ("auto", "true", "false"),
    "kernels": ("auto", "plain", "fused", "experimental_amx"),
    "model.activation": ("relu", "sigmoid", "tanh"),
    "model.init": ("he", "glorot", "default"),
    "model.shortcut": ("A", "B"),
    "model.stem": ("cifar", "imagenet"),
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16"),
    "schedule.warmup_shape": ("linear", "constant"),
}


def choice(key: str, value: str) -> None:
    """Check that ``value`` is one of the `CHOICES` of ``key``; the message names the one that looks most like it."""
    options = CHOICES[key]
    if value not in options:
        nearest = nearest_name(value, options)
        hint = f"; did you mean {key}={nearest}?" if nearest else ""
        raise ConfigError(f"{key}: expected one of {', '.join(options)}, got {value!r}{hint}")


def duration(key: str, value: Any, *, positive: bool = False) -> None:
    """Check that ``value`` is a duration, and with ``positive`` not 0."""
    try:
        length, _ = parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    if positive and length == 0:
        raise ConfigError(f"{key}: expected more than 0, got {value}")


def option_name(group: str, option: Any) -> None:
    """Check that ``group.name`` is the name of the option: to change it would change nothing but what is reported."""
    if option.name != option.NAME:
        raise ConfigError(
            f"{group}.name: expected {option.NAME!r}, which names the option itself, got {option.name!r}; "
            f"to change the option write {group}={option.name}"
        )


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that looks most like ``name``, if any does."""
    matches = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None
