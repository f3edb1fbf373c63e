"""The two comparisons' reports: rates out of times, ratios, targets."""

import io

import pytest
from rich.console import Console

from benchmarks import decode_report, layerwise_report
from benchmarks.completions import Answer
from benchmarks.decode_report import (
    DecodeReport,
    SideFailed,
    StreamsReport,
    batch_tokens_per_second,
    together_tokens_per_second,
)
from benchmarks.layerwise_report import LayerwiseReport, LengthReport, Trial
from benchmarks.paired import Machine, Paired


def shown(renderable: object) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(renderable)
    return text.getvalue()


def answer(first_s: float, step_s: float, events: int, tokens: int | None = None) -> Answer:
    event_s = [first_s + step_s * number for number in range(events)]
    return Answer(due_s=0, wanted_tokens=tokens or events, event_s=event_s, completion_tokens=tokens or events)


def test_streams_are_rated_while_all_of_them_decode() -> None:
    # The first stream runs alone at 100 tokens/s for two seconds, then both at 10 tokens/s each.
    alone = answer(0.0, 0.01, 200).event_s
    together = [2.0 + 0.1 * number for number in range(101)]
    first = Answer(due_s=0, wanted_tokens=301, event_s=alone + together, completion_tokens=301)
    second = answer(1.9, 0.1, 100)
    assert together_tokens_per_second([first, second]) == pytest.approx(20.0, rel=0.02)


def test_one_streams_rate_leaves_out_prefill_and_its_token() -> None:
    assert together_tokens_per_second([answer(5.0, 0.02, 100)]) == pytest.approx(50.0)
    assert together_tokens_per_second([answer(5.0, 0.04, 50, tokens=100)]) == pytest.approx(50.0)  # two tokens per event


def test_streams_that_never_ran_together_have_no_rate() -> None:
    with pytest.raises(SideFailed, match="never decoded all at once"):
        together_tokens_per_second([answer(0.0, 0.01, 10), answer(1.0, 0.01, 10)])
    with pytest.raises(SideFailed, match="more tokens"):
        together_tokens_per_second([answer(0.0, 0.01, 2)])


def test_a_failed_stream_fails_its_round() -> None:
    failed = answer(0.0, 0.01, 10)
    failed.error = "timeout"
    with pytest.raises(SideFailed, match="timeout"):
        together_tokens_per_second([answer(0.0, 0.01, 10), failed])


def test_a_batchs_rate_counts_every_stream() -> None:
    assert batch_tokens_per_second([3.0, 3.1, 3.2, 3.3], streams=8) == pytest.approx(80.0)
    with pytest.raises(SideFailed):
        batch_tokens_per_second([3.0, 3.1], streams=8)


@pytest.mark.parametrize(("ours", "met"), [(17.0, True), (16.0, False)])
def test_decode_targets(ours: float, met: bool) -> None:
    streams = [StreamsReport(streams=1, tokens_per_second=Paired.of([ours], [10.0]))]
    streams.append(StreamsReport(streams=3, tokens_per_second=Paired.of([1.0], [10.0])))  # no target is set for three
    report = DecodeReport(
        machine=Machine.here(), model="m", dtype="bfloat16", threads=1, input_tokens=1, output_tokens=1, streams=streams
    )
    (verdict,) = report.verdicts()
    assert verdict.met is met
    assert f"{ours / 10:.2f}" in shown(decode_report.render(report))


def trial(exposed_s: float, second_token_s: float = 1.0) -> Trial:
    return Trial(
        time_to_first_token_s=0.5,
        second_token_s=second_token_s,
        first_gap_s=second_token_s - 0.5,
        end_to_end_s=2.0,
        transfer_s=1.0,
        exposed_s=exposed_s,
        exposed_at_prefill_s=exposed_s,
        landed_bytes=100e6,
    )


def comparison(*lengths: LengthReport) -> LayerwiseReport:
    return LayerwiseReport(machine=Machine.here(), dtype="bfloat16", slow_mbit=1000, output_tokens=8, lengths=list(lengths))


def test_layerwise_targets_are_of_the_long_prompt_on_the_slow_link_and_of_the_short_one_on_every_link() -> None:
    long = LengthReport.of("slow", 4096, [trial(0.2), trial(0.3)], [trial(1.0), trial(1.0)])
    short = LengthReport.of("local", 128, [trial(0.1, 1.10)], [trial(0.1, 1.00)])
    other = LengthReport.of("local", 4096, [trial(0.9)], [trial(1.0)])
    report = comparison(long, short, other)
    assert [(verdict.measured, verdict.met) for verdict in report.verdicts()] == [(0.25, True), (pytest.approx(1.1), False)]
    text = shown(layerwise_report.render(report))
    assert "0.25 (0.20-0.30)" in text and "MISSED local link, 128 tokens" in text


def test_the_links_speed_is_whole_prompts() -> None:
    report = LengthReport.of("slow", 4096, [trial(0.1), trial(0.1)], [trial(1.0), trial(0.6)])
    assert report.whole_prompt_bytes_per_second == pytest.approx(125e6)


def test_a_prompt_whose_transfer_nobody_waited_for_has_no_ratio() -> None:
    report = comparison(LengthReport.of("local", 1024, [trial(0.0)], [trial(0.0)]))
    assert report.lengths[0].exposed_s.ratio is None
    assert "-" in shown(layerwise_report.render(report))
