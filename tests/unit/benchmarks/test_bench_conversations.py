"""The trace of the placement benchmark, and what its report says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.completions import Answer
from benchmarks.conversations import TraceShape, conversations
from benchmarks.errors import NotMeasured
from benchmarks.paired import Machine
from benchmarks.prefix_report import Pass, PrefixReport, render

SHAPE = TraceShape(systems=3, users=2, turns=3, system_tokens=20, message_tokens=5, answer_tokens=4)
MACHINE = Machine(processor="p", cores=2, load=0.0, python="3.11", system="s")


def test_each_turn_goes_on_from_the_last_and_users_share_system_prompts() -> None:
    trace = conversations(SHAPE, "seed", vocabulary=1000)
    assert len(trace) == 6
    assert len({tuple(conversation.system) for conversation in trace}) == 3
    for conversation in trace:
        first, second, third = conversation.prompts()
        assert first[:20] == conversation.system
        assert (len(first), len(second), len(third)) == (25, 34, 43)
        assert second[:25] == first and third[:34] == second


def test_the_same_seed_gives_the_same_trace_and_another_shares_nothing() -> None:
    first, again, other = (conversations(SHAPE, seed, vocabulary=100_000) for seed in ("a", "a", "b"))
    assert first == again
    assert not {tuple(one.system) for one in first} & {tuple(one.system) for one in other}


SMALL = st.integers(1, 4)


@given(systems=SMALL, users=SMALL, turns=SMALL, system=st.integers(1, 40), message=st.integers(1, 9), answer=st.integers(1, 9))
def test_what_can_be_found_again_is_counted_right(
    systems: int, users: int, turns: int, system: int, message: int, answer: int
) -> None:
    shape = TraceShape(
        systems=systems, users=users, turns=turns, system_tokens=system, message_tokens=message, answer_tokens=answer
    )
    seen: set[tuple[int, ...]] = set()
    prompt_tokens = found = 0
    for conversation in conversations(shape, "seed", vocabulary=1 << 30):
        history = 0
        for turn, prompt in enumerate(conversation.prompts()):
            prompt_tokens += len(prompt)
            known = tuple(conversation.system) in seen
            # An answer was said in the turn before, so it counts as known too.
            found += history if turn else system if known else 0
            seen.add(tuple(conversation.system))
            history = len(prompt) + answer
    assert prompt_tokens == shape.prompt_tokens
    assert found == shape.reusable_tokens


def answer(ttft_s: float, cached: int, error: str | None = None) -> Answer:
    return Answer(due_s=1.0, wanted_tokens=4, event_s=[1.0 + ttft_s], prompt_tokens=100, cached_tokens=cached, error=error)


def counters(role: str, hits: float, queries: float) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    labels = frozenset({("role", role)})
    return {
        ("serval_prefix_cache_hits_total", labels): hits,
        ("serval_prefix_cache_queries_total", labels): queries,
    }


def test_a_pass_counts_what_was_answered_and_what_was_not() -> None:
    growth = counters("prefill", 60, 200) | counters("decode", 20, 200)
    one = Pass.of([answer(0.1, 50), answer(0.3, 70), answer(9.0, 0, error="timeout")], growth, duration_s=2.0)
    assert (one.answered, one.errors, one.hit_rate) == (2, ["timeout"], 0.6)
    assert (one.prefill_hit_rate, one.decode_hit_rate) == (0.3, 0.1)
    assert one.time_to_first_token.p50 == pytest.approx(0.2)
    with pytest.raises(NotMeasured, match="timeout"):
        Pass.of([answer(0.1, 0, error="timeout")], growth, duration_s=1.0)


def report(ours: list[Pass], theirs: list[Pass]) -> PrefixReport:
    return PrefixReport(
        machine=MACHINE, shape=SHAPE, prefill_workers=4, decode_workers=2, concurrency=2, ours=ours, theirs=theirs
    )


def test_the_report_compares_round_by_round_and_judges() -> None:
    good = Pass.of([answer(0.1, 80)], counters("prefill", 80, 100), duration_s=1.0)
    bad = Pass.of([answer(0.2, 40)], counters("prefill", 40, 100), duration_s=2.0)
    found = report([good, good], [bad, bad])
    assert found.paired()["hit rate"].ratio == pytest.approx(2.0)
    assert found.paired()["TTFT p90, s"].ratio == pytest.approx(0.5)
    assert [verdict.met for verdict in found.verdicts()] == [True, True, True]
    assert [verdict.met for verdict in report([bad], [good]).verdicts()] == [False, False, False]
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render(found))
    assert "0.800" in captured.get() and "met" in captured.get()


def test_a_run_without_a_whole_round_has_no_verdict() -> None:
    assert report([], []).verdicts() == []
