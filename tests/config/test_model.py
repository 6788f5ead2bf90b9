"""The group ``model``: what wrong values are answered, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from resnet_train.config.run import Config

# Overrides, and the whole message.
MESSAGES: list[tuple[str, str]] = [
    ("model.depth=21", "model.depth: expected 6n + 2 (8, 14, 20, 32, ... 10004) in this family, got 21"),
    ("model.depth=2", "model.depth: expected 6n + 2 (8, 14, 20, 32, ... 10004) in this family, got 2"),
    ("model.depth=6000002", "model.depth: expected 6n + 2 (8, 14, 20, 32, ... 10004) in this family, got 6000002"),
    ("model=resnet18 model.depth=20", "model.depth: expected 18, 34, 50, 101 or 152 in this family, got 20"),
    (
        "model=resnet18 model.stem=cifar10",
        "model.stem: expected one of cifar, imagenet, got 'cifar10'; did you mean model.stem=cifar?",
    ),
    ("model.shortcut=C", "model.shortcut: expected one of A, B, got 'C'"),
    (
        "model.activation=rellu",
        "model.activation: expected one of relu, sigmoid, tanh, got 'rellu'; did you mean model.activation=relu?",
    ),
    ("model.activation=x", "model.activation: expected one of relu, sigmoid, tanh, got 'x'"),
    ("model.init=kaiming", "model.init: expected one of he, glorot, default, got 'kaiming'"),
    ("model.width=0", "model.width: expected a number > 0 and <= 64, got 0.0"),
    ("model.width=64.5", "model.width: expected a number > 0 and <= 64, got 64.5"),
    ("model.dropout=-0.1", "model.dropout: expected a number >= 0 and < 1, got -0.1"),
    ("model.dropout=1", "model.dropout: expected a number >= 0 and < 1, got 1.0"),
    (
        "model=plain20 model.zero_init_residual=true",
        "model.zero_init_residual=true contradicts model.residual=false: without shortcuts the network would put "
        "out zeros; set one of the two",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES, ids=[overrides for overrides, _ in MESSAGES])
def test_wrong_values_are_answered(overrides: str, message: str, refusal: Callable[[str], str]) -> None:
    assert refusal(overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        "model.width=64 model.dropout=0.99 model.zero_init_residual=true model.depth=8",
        "model=plain20 model.shortcut=B model.preactivation=true model.init=glorot",
    ],
)
def test_values_at_the_edge_are_accepted(overrides: str, checked: Callable[[str], Config]) -> None:
    checked(overrides)


def test_names_of_the_model_follow_its_depth(
    composed: Callable[..., DictConfig], converted: Callable[[DictConfig], Config]
) -> None:
    assert converted(composed("model.depth=26")).name == "resnet26"
    assert converted(composed("model=plain20", "model.depth=14")).model.name == "plain14"
