"""Student's t and Welch's interval, against scipy where it is installed, and against printed tables."""

from __future__ import annotations

import pytest

from resnet_train.commands.report.welch import interval_of_difference, interval_of_mean, t_quantile

ONE, OTHER = [0.912, 0.915, 0.911, 0.917, 0.913], [0.905, 0.914, 0.899]


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (1000, 1.962)])
def test_quantiles_of_the_tables(freedom: float, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=5e-4)


def test_scipy_agrees() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 1.3, 2, 2.5, 3.7, 8, 40.2, 5000):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-5)
    found = stats.ttest_ind(ONE, OTHER, equal_var=False).confidence_interval(0.95)
    assert interval_of_difference(ONE, OTHER) == pytest.approx((found.low, found.high), abs=1e-7)
    mean = stats.ttest_1samp(ONE, 0).confidence_interval(0.95)
    assert interval_of_mean(ONE) == pytest.approx((mean.low, mean.high), abs=1e-7)


def test_one_value_has_no_spread() -> None:
    assert interval_of_difference(ONE, [0.9]) is None
    assert interval_of_mean([0.9]) is None


def test_equal_values() -> None:
    assert interval_of_difference([0.75, 0.75], [0.5, 0.5]) == (0.25, 0.25)
