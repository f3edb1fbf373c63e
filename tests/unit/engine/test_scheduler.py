"""Decisions: decodes first, prompts in chunks within the budget, first in first out, preemption of the youngest."""

from typing import Any

import pytest

from engine.kv_cache import KVCache
from engine.scheduler import Schedule, Scheduler
from engine.sequence import Sequence
from protocol.errors import Overloaded
from protocol.sampling import SamplingParams

BLOCK = 4


def make_sequence(name: str, length: int, **fields: Any) -> Sequence:
    return Sequence(name, list(range(length)), SamplingParams(max_tokens=1000), **fields)


def make_scheduler(*sequences: Sequence, blocks: int = 64, batch: int = 16, width: int = 8) -> Scheduler:
    cache = KVCache(blocks, BLOCK, prefix_cache=False)
    scheduler = Scheduler(cache, max_batch_tokens=batch, max_sequences=width, choose_drafts=lambda sequences: None)
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler


def spans(schedule: Schedule) -> list[tuple[str, int, int]]:
    return [(span.sequence.request_id, span.start, span.end) for span in schedule.spans]


def advance(scheduler: Scheduler) -> Schedule:
    """Schedules and does what the engine would: marks spans computed and appends a token where one is drawn."""
    schedule = scheduler.schedule()
    for span in schedule.spans:
        samples = span.samples
        span.sequence.num_computed = span.end
        if samples:
            span.sequence.append(1)
    return schedule


def test_prompts_are_computed_in_chunks_first_in_first_out() -> None:
    scheduler = make_scheduler(make_sequence("a", 20), make_sequence("b", 10), make_sequence("c", 3))
    assert spans(advance(scheduler)) == [("a", 0, 16)]
    assert spans(advance(scheduler)) == [("a", 16, 20), ("b", 0, 10), ("c", 0, 2)]
    assert spans(advance(scheduler)) == [("a", 20, 21), ("b", 10, 11), ("c", 2, 3)]


def test_decodes_come_before_prompts() -> None:
    scheduler = make_scheduler(make_sequence("a", 3))
    advance(scheduler)
    scheduler.add(make_sequence("b", 40))
    assert spans(advance(scheduler)) == [("a", 3, 4), ("b", 0, 15)]
    assert spans(advance(scheduler)) == [("a", 4, 5), ("b", 15, 30)]


def test_no_more_sequences_run_than_allowed() -> None:
    scheduler = make_scheduler(*(make_sequence(name, 2) for name in "abc"), width=2)
    assert spans(advance(scheduler)) == [("a", 0, 2), ("b", 0, 2)]
    scheduler.remove(scheduler.running[0])
    assert spans(advance(scheduler)) == [("b", 2, 3), ("c", 0, 2)]


def test_the_head_of_the_queue_is_not_overtaken_for_blocks() -> None:
    scheduler = make_scheduler(make_sequence("a", 8), make_sequence("b", 12), make_sequence("c", 1), blocks=4, batch=64)
    assert spans(advance(scheduler)) == [("a", 0, 8)]
    assert [s.request_id for s in scheduler.waiting] == ["b", "c"]


def test_a_sequence_that_holds_its_blocks_passes_one_that_waits_for_blocks() -> None:
    scheduler = make_scheduler(blocks=4, batch=64)
    blocks = scheduler._kv_cache.allocate(3)
    scheduler.add(make_sequence("waits", 8))
    scheduler.add(make_sequence("transferred", 11, blocks=blocks, num_computed=11, output=[5]))
    assert spans(advance(scheduler)) == [("transferred", 11, 12)]


def test_the_youngest_is_preempted_and_computed_again() -> None:
    old, young = make_sequence("old", 8), make_sequence("young", 7)
    scheduler = make_scheduler(old, young, blocks=4)
    advance(scheduler)  # two blocks each: the pool is full
    schedule = advance(scheduler)
    assert spans(schedule) == [("old", 8, 9)]
    assert schedule.preemptions == 1
    assert (young.blocks, young.num_computed, young.num_preemptions) == ([], 0, 1)
    assert list(scheduler.waiting) == [young]
    assert not scheduler._kv_cache.can_allocate(1), "what the preempted sequence needs is set apart from newcomers"
    scheduler.remove(old)
    scheduler._kv_cache.release(old.blocks)
    assert spans(advance(scheduler)) == [("young", 0, 8)]
    assert scheduler._kv_cache.can_allocate(2)


def test_a_preempted_span_of_the_same_step_is_not_computed() -> None:
    old = make_sequence("old", 30)
    scheduler = make_scheduler(old, blocks=8, batch=16)
    advance(scheduler)
    scheduler._kv_cache.release(old.blocks[4:])
    del old.blocks[4:]
    young = make_sequence("young", 13)
    scheduler.add(young)
    scheduler._max_batch_tokens = 40
    schedule = scheduler.schedule()
    # The old one takes back what it needs in the same step, before the newcomer is admitted.
    assert spans(schedule) == [("old", 16, 30)]
    assert list(scheduler.waiting) == [young]


def test_what_can_never_fit_ends_at_once() -> None:
    fits = make_sequence("fits", 4)
    scheduler = make_scheduler(make_sequence("huge", 100), fits, blocks=4, batch=64)
    schedule = advance(scheduler)
    (ending,) = schedule.endings
    assert (ending.sequence.request_id, ending.finish) == ("huge", "error")
    assert isinstance(ending.error, Overloaded)
    assert spans(schedule) == [("fits", 0, 4)]


def test_a_lone_sequence_that_outgrows_the_pool_ends_by_length() -> None:
    scheduler = make_scheduler(make_sequence("a", 7), blocks=2)
    advance(scheduler)
    advance(scheduler)
    schedule = advance(scheduler)
    assert spans(schedule) == []
    assert [(ending.sequence.request_id, ending.finish) for ending in schedule.endings] == [("a", "length")]
    assert not scheduler.running
    assert not scheduler.waiting


@pytest.mark.parametrize("held_elsewhere", [1, 2])
def test_a_lone_sequence_waits_for_blocks_that_others_hold(held_elsewhere: int) -> None:
    scheduler = make_scheduler(make_sequence("a", 8), blocks=4, batch=64)
    advance(scheduler)
    elsewhere = scheduler._kv_cache.allocate(2)
    assert spans(advance(scheduler)) == []
    assert [s.request_id for s in scheduler.waiting] == ["a"]
    scheduler._kv_cache.release(elsewhere[:held_elsewhere])
    assert spans(advance(scheduler)) == [("a", 0, 9)]


# ---- guesses


def decoding(*guesses: int, blocks: int = 64, batch: int = 64) -> tuple[Scheduler, list[Sequence]]:
    """Sequences of six tokens, the last of which is not computed, each with so many guesses."""
    sequences = [make_sequence(str(index), 5) for index in range(len(guesses))]
    scheduler = make_scheduler(*sequences, blocks=blocks, batch=batch)
    advance(scheduler)
    for sequence, count in zip(sequences, guesses, strict=True):
        sequence.drafts = list(range(count))
    return scheduler, sequences


def test_a_decode_is_lengthened_by_its_guesses() -> None:
    scheduler, _ = decoding(3, 0, 1)
    schedule = scheduler.schedule()
    assert spans(schedule) == [("0", 5, 9), ("1", 5, 6), ("2", 5, 7)]
    assert [(span.known_end, span.drafts, span.samples) for span in schedule.spans] == [
        (6, (0, 1, 2), True),
        (6, (), True),
        (6, (0,), True),
    ]


def test_every_known_token_comes_before_any_guess() -> None:
    scheduler, _ = decoding(9, 9, 9, batch=20)
    scheduler._max_batch_tokens = 7
    assert spans(scheduler.schedule()) == [("0", 5, 10), ("1", 5, 6), ("2", 5, 6)]


def test_guesses_leave_prompts_half_of_what_is_left() -> None:
    scheduler, _ = decoding(30, 30, batch=42)
    scheduler.add(make_sequence("prompt", 40))
    assert spans(scheduler.schedule()) == [("0", 5, 26), ("1", 5, 6), ("prompt", 0, 20)]
    assert spans(decoding(30, 30, batch=42)[0].schedule()) == [("0", 5, 36), ("1", 5, 16)]


def test_guesses_take_blocks_that_nobody_needs() -> None:
    scheduler, (first, second) = decoding(6, 6, blocks=9)
    schedule = scheduler.schedule()  # each holds two blocks, for eight tokens; one more for its guesses leaves one for each
    assert spans(schedule) == [("0", 5, 12), ("1", 5, 12)]
    assert (len(first.blocks), len(second.blocks)) == (3, 3)

    scheduler, (first, second) = decoding(6, 6, blocks=7)
    assert spans(scheduler.schedule()) == [("0", 5, 12), ("1", 5, 8)], "for the second it would be the last but one"
    assert scheduler._kv_cache.num_free == 2


def test_nothing_is_put_back_for_a_guess_and_guesses_of_what_is_put_back_are_forgotten() -> None:
    scheduler, (old, young) = decoding(4, 4, blocks=4)
    assert spans(scheduler.schedule()) == [("0", 5, 8), ("1", 5, 8)], "as far as the blocks go that they hold"
    assert not scheduler.waiting
    for sequence in (old, young):
        sequence.num_computed = 8
        for token in (1, 2, 3):
            sequence.append(token)
    schedule = scheduler.schedule()
    assert (schedule.preemptions, list(scheduler.waiting), young.drafts) == (1, [young], [])
    assert old.drafts


def test_guesses_that_came_with_a_transferred_prompt_are_scheduled_at_once() -> None:
    scheduler = make_scheduler(blocks=8, batch=64)
    blocks = scheduler._kv_cache.allocate(3)
    sequence = make_sequence("transferred", 11, blocks=blocks, num_computed=11, output=[5])
    sequence.drafts = [7, 8]
    scheduler.add(sequence)
    assert spans(advance(scheduler)) == [("transferred", 11, 14)]
