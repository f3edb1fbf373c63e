"""Percentiles of samples and of histograms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quantiles import Spread, histogram_percentile, percentile


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_numpys(samples: list[float], percent: float) -> None:
    assert percentile(samples, percent) == pytest.approx(float(np.percentile(samples, percent)), abs=1e-6)


def test_no_samples_have_no_percentile_and_no_spread() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)
    assert Spread.of([]) is None


def test_percent_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        percentile([1.0], 101)


def test_spread_of_a_hundred() -> None:
    spread = Spread.of([float(number) for number in range(1, 102)])
    assert spread is not None
    assert (spread.samples, spread.mean, spread.p50, spread.p90, spread.p99) == (101, 51.0, 51.0, 91.0, 100.0)
    assert (spread.smallest, spread.largest) == (1.0, 101.0)


INFINITY = float("inf")


def test_histogram_percentile_is_linear_inside_its_bucket() -> None:
    buckets = {1.0: 2.0, 2.0: 6.0, 4.0: 8.0, INFINITY: 8.0}
    assert histogram_percentile(buckets, 50) == pytest.approx(1.5)  # the fourth of eight: half way through the second bucket
    assert histogram_percentile(buckets, 100) == pytest.approx(4.0)
    assert histogram_percentile(buckets, 12.5) == pytest.approx(0.5)


def test_histogram_percentile_beyond_the_last_bound_is_that_bound() -> None:
    assert histogram_percentile({1.0: 1.0, INFINITY: 10.0}, 99) == 1.0


def test_empty_histograms_have_none() -> None:
    assert histogram_percentile({}, 50) is None
    assert histogram_percentile({1.0: 0.0, INFINITY: 0.0}, 50) is None
