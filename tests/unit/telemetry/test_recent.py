"""Estimators that forget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.recent import RecentLine, RecentMean, RecentRate


def test_a_rate_weighs_by_time_and_forgets() -> None:
    rate = RecentRate(remembered=4)
    assert rate.per_second == 0
    rate.add(1000, 1.0)
    rate.add(1, 0.0001)  # 10,000 per second, but for no time at all
    assert rate.per_second == pytest.approx(1000, rel=0.01)
    for _ in range(40):
        rate.add(50, 1.0)
    assert rate.per_second == pytest.approx(50, rel=0.01)


def test_a_mean_starts_without_a_lag_and_forgets() -> None:
    mean = RecentMean(remembered=4)
    assert mean.value == 0
    mean.add(8.0)
    assert mean.value == pytest.approx(8.0)
    for _ in range(40):
        mean.add(2.0)
    assert mean.value == pytest.approx(2.0, rel=0.01)


@given(fixed=st.floats(0, 10), slope=st.floats(0, 10), start=st.integers(0, 100))
def test_a_line_finds_both_parts(fixed: float, slope: float, start: int) -> None:
    line = RecentLine()
    for x in range(start, start + 50):
        line.add(x, fixed + slope * x)
    assert line.deviation_x == pytest.approx(14.4, rel=0.05)
    assert line.fit(assumed_slope=slope, spread=0.001) == pytest.approx((fixed, slope), rel=1e-3, abs=1e-2)


def test_a_line_of_one_point_has_the_assumed_slope() -> None:
    line = RecentLine()
    assert line.fit(0.5, spread=1) == (0.0, 0.5)
    line.add(10, 8.0)
    assert line.fit(0.5, spread=1) == pytest.approx((3.0, 0.5))
    assert line.deviation_x == 0
    assert line.fit(2.0, spread=1) == pytest.approx((0.0, 0.8)), "no part is negative"


def test_a_line_that_falls_is_flat() -> None:
    line = RecentLine()
    for x in range(20):
        line.add(x, 100 - x)
    fixed, slope = line.fit(0.0, spread=0.1)
    assert slope == 0 and fixed == pytest.approx(line.mean_y)


def test_a_line_forgets() -> None:
    line = RecentLine(remembered=8)
    for x in range(50):
        line.add(x % 10, 5 * (x % 10))
    for x in range(100):
        line.add(x % 10, 1 + 2 * (x % 10))
    assert line.fit(0.0, spread=0.01) == pytest.approx((1, 2), rel=1e-2)
