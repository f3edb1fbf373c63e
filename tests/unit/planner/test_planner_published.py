"""The performance model gives what others have published and measured, and the docs say by how much it does not."""

from pathlib import Path

import pytest

from planner.dollars import usd_per_million
from planner.overheads import Residual, measured_overheads, residuals
from planner.published import DECODE_POINTS, LONGCAT, THEORIES, Theory

DOCS = Path(__file__).parents[3] / "docs" / "planner.md"


@pytest.mark.parametrize("theory", THEORIES, ids=lambda theory: theory.model.name)
def test_theory_of_three_models_within_five_percent(theory: Theory) -> None:
    assert theory.predicted_tpot_s == pytest.approx(theory.tpot_s, rel=0.05)
    layer = theory.roofline.expert_layer(theory.load)
    for part in ("attention", "dispatch", "experts", "combine"):
        assert getattr(layer, part) == pytest.approx(getattr(theory, f"{part}_s"), rel=0.05), part
    assert usd_per_million(2.0, theory.REQUESTS / theory.tpot_s) == pytest.approx(theory.usd_per_million, abs=0.005)
    assert usd_per_million(2.0, theory.REQUESTS / theory.predicted_tpot_s) == pytest.approx(theory.usd_per_million, abs=0.015)


def test_seventy_cents_per_million_tokens() -> None:
    assert usd_per_million(2.0, 804) == pytest.approx(0.70, rel=0.015)


def test_longcat_counts() -> None:
    assert LONGCAT.kv_values_per_token * 2 == 64_512
    assert LONGCAT.kv_values_per_token * 2 * 5000 == pytest.approx(323e6, rel=0.01)
    assert LONGCAT.kv_values_per_token * 2 * 131_072 == pytest.approx(8.46e9, rel=0.01)
    assert LONGCAT.total_parameters == pytest.approx(560.66e9, rel=1e-3)
    assert LONGCAT.activated_parameters == pytest.approx(27.15e9, rel=1e-3)


@pytest.mark.parametrize("residual", residuals(measured_overheads()), ids=lambda residual: residual.name)
def test_what_was_measured_elsewhere_within_an_eighth(residual: Residual) -> None:
    assert abs(residual.error) < 0.125


def test_some_points_are_predictions() -> None:
    assert sum(not point.fitted for point in DECODE_POINTS) == 4


@pytest.mark.parametrize("residual", residuals(measured_overheads()), ids=lambda residual: residual.name)
def test_the_docs_tell_every_error(residual: Residual) -> None:
    """A changed model shows as a row that is no longer there."""
    row = f"| {residual.name} | {residual.published:,.1f} | {residual.predicted:,.1f} | {residual.error:+.1%} |"
    assert row in DOCS.read_text()
