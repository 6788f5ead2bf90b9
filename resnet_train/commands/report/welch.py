"""Intervals of means and of their difference, by Student's t with Welch's degrees of freedom."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.95


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean that ``values`` are drawn around; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = t_quantile(len(values) - 1) * error
    return mean - reach, mean + reach


def interval_of_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the difference of two means, with spreads of their own (Welch 1947); None below n = 2."""
    if min(len(one), len(other)) < 2:
        return None
    difference = statistics.fmean(one) - statistics.fmean(other)
    a, b = (statistics.variance(values) / len(values) for values in (one, other))
    if a + b == 0 or not math.isfinite(a + b):
        return difference, difference
    freedom = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1))
    reach = t_quantile(freedom) * math.sqrt(a + b)
    return difference - reach, difference + reach


def t_quantile(freedom: float) -> float:
    """Where Student's t with so many degrees of freedom (at least 1) has 97.5 % below it, to six digits."""
    low, high = 0.0, 13.0  # 12.706 for one degree of freedom
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return high


def _within(t: float, freedom: float, pieces: int = 200) -> float:
    """The probability of [-t, t]: Simpson's rule over the angle atan(t / sqrt(f)), with density cos^(f - 1)."""
    end = math.atan(t / math.sqrt(freedom))
    width = end / pieces
    heights = [math.pow(math.cos(width * index), freedom - 1) for index in range(pieces + 1)]
    area = width / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
    return 2 * area * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
