"""The key ``expected``: what wrong values are answered, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resnet_train.config.expected import ExpectedConfig, ProtocolConfig
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError

RECIPE = "experiment=he2015_resnet110"
MESSAGES: list[tuple[str, str]] = [
    ("expected.mean=101", "expected.mean: expected a number >= 0 and <= 100, got 101.0"),
    ("expected.n=0", "expected.n: expected a number >= 1, got 0"),
    ("expected.spread=-1", "expected.spread: expected a number >= 0 and <= 100, got -1.0"),
    (
        "expected.n=1",
        "expected.spread: one run has no deviation, got 0.16 with expected.n=1; give the number of runs, or "
        "expected.spread=null",
    ),
    ("expected.source=' '", "expected.source: expected a paper, a table, or docs/results, got nothing"),
    (
        "expected.protocol.result=lst",
        "expected.protocol.result: expected one of last, best, unknown, got 'lst'; did you mean "
        "expected.protocol.result=last?",
    ),
    (
        "expected.protocol.precision=bf61",
        "expected.protocol.precision: expected one of fp32, tf32, bf16, fp16, unknown, got 'bf61'; did you mean "
        "expected.protocol.precision=bf16?",
    ),
]


@pytest.mark.slow
def test_a_recipe_has_it_and_nothing_else(compose: Callable[..., Config]) -> None:
    assert compose("model=resnet110").expected is None
    assert compose(RECIPE).expected == ExpectedConfig(
        mean=93.39,
        spread=0.16,
        n=5,
        source="He et al. 2015 (arXiv 1512.03385), table 6",
        protocol=ProtocolConfig(
            result="unknown",
            precision="fp32",
            differs=["the mean of each pixel is subtracted, here images are normalised per channel"],
        ),
    )
    assert compose(RECIPE, "expected=null").expected is None


@pytest.mark.parametrize(("override", "message"), MESSAGES, ids=[override for override, _ in MESSAGES])
def test_wrong_values_are_answered(override: str, message: str, compose: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(RECIPE, override)
    assert str(caught.value) == message
