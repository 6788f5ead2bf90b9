"""The key ``expected``: the result that a recipe answers to, as its source gives it. No run depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_train.config import checks
from resnet_train.errors import ConfigError


@dataclass
class ProtocolConfig:
    """How the source measured."""

    result: str  # which accuracy of a training it gives: last, best (chosen on the test images), unknown
    precision: str  # in which it trained, or unknown
    differs: list[str]  # in what else it differs from the recipe, a line each


@dataclass
class ExpectedConfig:
    """A published or measured result on the test images."""

    mean: float  # accuracy in %
    spread: float | None  # sample standard deviation over its runs, in points; null: not given
    n: int  # runs
    source: str
    protocol: ProtocolConfig


def check_expected(expected: ExpectedConfig) -> None:
    """Raise `ConfigError` for what no source can say."""
    checks.number("expected.mean", expected.mean, at_least=0, at_most=100)
    checks.number("expected.n", expected.n, at_least=1)
    if expected.spread is not None:
        checks.number("expected.spread", expected.spread, at_least=0, at_most=100)
        if expected.n == 1:
            raise ConfigError(
                f"expected.spread: one run has no deviation, got {expected.spread} with expected.n=1; give the number "
                f"of runs, or expected.spread=null"
            )
    if not expected.source.strip():
        raise ConfigError("expected.source: expected a paper, a table, or docs/results, got nothing")
    checks.choice("expected.protocol.result", expected.protocol.result)
    checks.choice("expected.protocol.precision", expected.protocol.precision)
