"""The fairness report: percentiles over all rounds, and nothing said of too few samples."""

import pytest

from benchmarks.fairness_report import FEWEST_SAMPLES, FairnessReport, Kind, Phase
from benchmarks.paired import Machine


def report(**samples: tuple[float, int]) -> FairnessReport:
    kinds: dict[str, Kind] = {"alone": "alone", "limit": "at its limit", "flood": "flood"}
    phases = [
        Phase(kind=kinds[name], seconds=1.0, time_to_first_token_s=[value] * count, errors=[], offender={})
        for name, (value, count) in samples.items()
        for _ in range(2)
    ]
    machine = Machine(processor="p", cores=1, load=0.0, python="3", system="s")
    return FairnessReport(
        machine=machine, workers=1, input_tokens=1, output_tokens=1, rate=1, limit_per_minute=60, times=20, phases=phases
    )


def test_the_target_is_met_or_missed_by_the_99th_percentile_of_all_rounds() -> None:
    one = report(alone=(0.1, FEWEST_SAMPLES), limit=(0.1, FEWEST_SAMPLES), flood=(0.105, FEWEST_SAMPLES))
    assert one.ratio("flood") == pytest.approx(1.05)
    assert one.round_ratios("flood") == pytest.approx([1.05, 1.05])
    assert [verdict.met for verdict in one.verdicts()] == [True, True]
    other = report(alone=(0.1, FEWEST_SAMPLES), limit=(0.2, FEWEST_SAMPLES), flood=(0.2, FEWEST_SAMPLES))
    assert [verdict.met for verdict in other.verdicts()] == [False, True]


def test_too_few_samples_or_none_meet_nothing() -> None:
    assert report(alone=(0.1, 10), flood=(0.1, 10)).ratio("flood") is None
    assert not any(verdict.met for verdict in report().verdicts())
