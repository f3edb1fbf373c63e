"""The report on speculation: targets, and what is not measured against them."""

import io

import pytest
from rich.console import Console

from benchmarks.paired import Machine, Paired
from benchmarks.speculation_report import SpeculationReport, TaskReport, render
from benchmarks.speculation_tasks import COPY, ORDINARY, TASKS


def task(kind: str, ours: float, streams: int = 1) -> TaskReport:
    rate = Paired.of([ours, ours], [10.0, 10.0])
    return TaskReport(
        task=f"{kind} {ours}", kind=kind, streams=streams, tokens_per_second=rate, tokens=200, drafted=90, accepted=50
    )


def report(*tasks: TaskReport) -> SpeculationReport:
    return SpeculationReport(
        machine=Machine.here(), model="m", dtype="bfloat16", threads=1, speculation="ngram", draft_tokens=8, tasks=list(tasks)
    )


@pytest.mark.parametrize(
    ("copying", "ordinary", "met"),
    [
        ((14.0, 16.0, 30.0), (9.8, 12.0), [True, True]),
        ((14.0, 14.5, 30.0), (9.8, 12.0), [False, True]),
        ((16.0,), (9.6, 12.0, 13.0), [True, False]),  # one that became slower is not made up for by the others
    ],
)
def test_targets(copying: tuple[float, ...], ordinary: tuple[float, ...], met: list[bool]) -> None:
    tasks = [task(COPY, ours) for ours in copying] + [task(ORDINARY, ours) for ours in ordinary]
    assert [verdict.met for verdict in report(*tasks).verdicts()] == met


def test_only_one_user_alone_is_judged() -> None:
    assert report(task(COPY, 5.0, streams=4), task(ORDINARY, 5.0, streams=4)).verdicts() == []


def test_the_table_shows_what_was_guessed() -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(render(report(task(COPY, 20.0))))
    shown = text.getvalue()
    assert "2.00 (2.00-2.00)" in shown
    assert "0.25" in shown  # 50 of 200 tokens
    assert "met" in shown


def test_both_kinds_are_measured_and_what_is_copied_stands_in_the_prompt_twice() -> None:
    assert {one.kind for one in TASKS} == {COPY, ORDINARY}
    for one in TASKS:
        if one.kind == COPY:
            line = max(one.prompt.splitlines(), key=len)
            assert one.prompt.count(line) == 2
