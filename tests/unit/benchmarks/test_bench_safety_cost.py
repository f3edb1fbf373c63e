"""What is shown of safety's cost: medians over pairs of turns, with what they are worth."""

import pytest
import typer

from benchmarks.paired import Machine
from benchmarks.safety_cost import _read_loads
from benchmarks.safety_report import Load, LoadCost, SafetyReport, Turn, render

ALONE = Load(streams=1, input_tokens=8, output_tokens=2)
TOGETHER = Load(streams=4, input_tokens=8, output_tokens=2)


def turns(*first_token_s: float) -> list[Turn]:
    return [Turn(first_token_s=each, token_s=each / 10, decode_s=each / 100, processor_s=each) for each in first_token_s]


def report(*loads: LoadCost) -> SafetyReport:
    return SafetyReport(machine=Machine.here(), is_control=False, loads=list(loads), digest_share=0.01)


@pytest.mark.parametrize(("ratio", "met"), [(1.02, True), (1.05, False)])
def test_the_verdict_is_over_all_loads(ratio: float, met: bool) -> None:
    unsafe = [1.0, 2.0, 4.0]
    slower = [each * ratio for each in unsafe]
    found = report(
        LoadCost(load=ALONE, safe=turns(*slower), unsafe=turns(*unsafe)),
        LoadCost(load=TOGETHER, safe=turns(*slower, 9.0), unsafe=turns(*unsafe, 1.0)),
    )
    assert [verdict.met for verdict in found.verdicts()] == [met, met]
    assert found.verdicts()[0].measured == pytest.approx(ratio)
    assert render(found) is not None


def test_what_was_not_measured_is_missed_and_shown() -> None:
    found = report(LoadCost(load=ALONE, safe=[], unsafe=[]))
    assert [verdict.met for verdict in found.verdicts()] == [False, False]
    assert render(found) is not None


def test_loads() -> None:
    assert _read_loads("1x8,4x8,1x8", 2) == [ALONE, TOGETHER]


@pytest.mark.parametrize("text", ["", "1x", "0x8", "4x8,", "-1x8", "8"])
def test_what_is_no_load_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--loads"):
        _read_loads(text, 2)
