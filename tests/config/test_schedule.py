"""The group ``schedule``: what wrong values are answered, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.config.run import Config

DURATION = "expected a duration such as 5, '5 epochs' or '400 steps', got"
# Overrides, and the whole message.
MESSAGES: list[tuple[str, str]] = [
    (
        "schedule.name=linear",
        "schedule.name: expected 'cosine', which names the option itself, got 'linear'; "
        "to change the option write schedule=linear",
    ),
    ("schedule.warmup=-1", f"schedule.warmup: {DURATION} -1"),
    ("schedule.warmup=null", f"schedule.warmup: {DURATION} None"),
    ("schedule.warmup='5 minutes'", f"schedule.warmup: {DURATION} '5 minutes'"),
    ("schedule.warmup='0.5 steps'", "schedule.warmup: expected a whole number of steps, got '0.5 steps'"),
    ("schedule.warmup_start=1.5", "schedule.warmup_start: expected a number >= 0 and <= 1, got 1.5"),
    ("schedule.warmup_start=-0.5", "schedule.warmup_start: expected a number >= 0 and <= 1, got -0.5"),
    (
        "schedule.warmup_shape=lineal",
        "schedule.warmup_shape: expected one of linear, constant, got 'lineal'; "
        "did you mean schedule.warmup_shape=linear?",
    ),
    ("schedule.final_lr=-0.1", "schedule.final_lr: expected a number >= 0, got -0.1"),
    ("schedule=linear schedule.final_lr=0.2", "schedule.final_lr: expected at most optim.lr=0.1, got 0.2"),
    ("schedule=multistep schedule.gamma=0", "schedule.gamma: expected a number > 0, got 0.0"),
    ("schedule=multistep schedule.milestones=[1,x]", f"schedule.milestones[1]: {DURATION} 'x'"),
    (
        "schedule.warmup=1 schedule.warmup_shape=constant",
        "schedule.warmup_start: expected more than 0 with warmup_shape=constant, got 0, at which nothing is learnt; "
        "try schedule.warmup_start=0.1",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES, ids=[overrides for overrides, _ in MESSAGES])
def test_wrong_values_are_answered(overrides: str, message: str, refusal: Callable[[str], str]) -> None:
    assert refusal(overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        "schedule.final_lr=0.1 schedule.warmup=200 schedule.warmup_start=1",
        "schedule=multistep schedule.milestones=[]",
        "schedule=multistep epochs=null steps=64000 schedule.milestones=[32000 steps,122.88]",
    ],
)
def test_values_at_the_edge_are_accepted(overrides: str, checked: Callable[[str], Config]) -> None:
    checked(overrides)
