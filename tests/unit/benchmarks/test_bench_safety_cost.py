"""The interval says what a noisy comparison is worth."""

import math

import pytest

from benchmarks.paired import Machine, Paired
from benchmarks.safety_cost import Cost, Interval, SafetyReport, render


def test_the_interval_holds_the_ratio_and_narrows_with_the_spread() -> None:
    unsafe = [1.0, 2.0, 4.0, 1.5, 3.0, 2.5]
    wide = Interval.of(Paired.of([value * (1.02 + 0.1 * (-1) ** n) for n, value in enumerate(unsafe)], unsafe))
    narrow = Interval.of(Paired.of([value * (1.02 + 0.001 * (-1) ** n) for n, value in enumerate(unsafe)], unsafe))
    assert wide is not None and narrow is not None
    assert wide.low < narrow.low < narrow.ratio < narrow.high < wide.high
    assert narrow.ratio == pytest.approx(1.02, abs=1e-3)


def test_by_hand() -> None:
    """Student's t with four degrees of freedom, 2.78, over five log ratios."""
    logs = [0.0, 0.1, -0.1, 0.2, -0.2]
    found = Interval.of(Paired.of([math.exp(each) for each in logs], [1.0] * 5))
    assert found is not None
    half = 2.78 * math.sqrt(sum(each**2 for each in logs) / 4 / 5)
    assert (found.low, found.ratio, found.high) == pytest.approx((math.exp(-half), 1.0, math.exp(half)))


def test_too_few_rounds_have_none() -> None:
    assert Interval.of(Paired.of([1.0] * 4, [1.0] * 4)) is None


@pytest.mark.parametrize(("ratio", "met"), [(1.02, True), (1.05, False)])
def test_the_verdict(ratio: float, met: bool) -> None:
    report = SafetyReport(
        machine=Machine.here(),
        input_tokens=8,
        output_tokens=2,
        streams=1,
        costs=[Cost.of("TTFT", [ratio] * 5, [1.0] * 5)],
        digest_share=0.01,
    )
    assert [verdict.met for verdict in report.verdicts()] == [met]
    assert render(report) is not None
