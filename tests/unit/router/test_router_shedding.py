"""Who is refused at the door because it would wait too long: the pace, the prediction, the decision, and the router that obeys."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.outcomes import Outcome
from router.pace import Pace
from router.request import Request
from router.shedding import LONGEST_RETRY_S, Prospect, Shed, ShedReason, shed
from router.tenants.caller import Caller
from router.tenants.fair_queue import FairQueue, Share
from router.tenants.tenant import TenantLimits
from tests.unit.router.dispatch_world import MAX_TOKENS, World

POSITIVE = st.floats(min_value=1e-3, max_value=1e4)


def steady(gap_s: float, places: int, pace: Pace | None = None, start: float = 0.0) -> tuple[Pace, float]:
    """A pace after places that came one by one, and the time of the last one."""
    pace = pace or Pace()
    pace.wait_begins(start)
    for number in range(places):
        pace.taken(start + (number + 1) * gap_s)
    return pace, start + places * gap_s


# ---- the pace


def test_it_is_the_places_per_second_of_the_time_in_which_whoever_came_had_to_wait() -> None:
    pace, now = steady(0.5, 20)
    assert pace.per_second(now) == pytest.approx(2.0)
    pace.wait_ends()
    pace.taken(now + 49)  # nobody had to wait for this one
    assert pace.per_second(now + 50) == pytest.approx(2.0), "idle time says nothing"
    _, later = steady(0.5, 1, pace, now + 55)
    assert pace.per_second(later) == pytest.approx(2.0)


def test_answers_that_end_together_count_as_many_over_the_time_before() -> None:
    pace = Pace()
    pace.wait_begins(0.0)
    for wave in range(1, 9):
        for _ in range(8):
            pace.taken(2.0 * wave)
        assert pace.per_second(2.0 * wave) == pytest.approx(4.0, rel=0.15), "right after each wave"


def test_the_first_few_places_decide_nothing() -> None:
    pace = Pace()
    pace.wait_begins(0.0)
    assert pace.per_second(5.0) is None
    for number in range(1, 9):
        assert not pace.is_known(number * 1.0)
        pace.taken(number * 1.0)
    assert pace.is_known(8.0)


def test_places_that_do_not_come_make_it_slower_by_the_moment() -> None:
    pace, now = steady(0.1, 100)
    looks = [pace.per_second(now + elapsed) or 0.0 for elapsed in (0.0, 1.0, 10.0, 100.0)]
    assert looks == sorted(looks, reverse=True) and looks[-1] < 0.5 < 5 < looks[0]


@given(gap_s=POSITIVE, burst=st.integers(1, 16))
def test_a_burst_of_places_moves_it_by_less_than_twice_and_is_forgotten(gap_s: float, burst: int) -> None:
    pace, now = steady(gap_s, 200)
    for _ in range(burst):
        pace.taken(now)
    after = pace.per_second(now)
    assert after is not None and 0.999 < after * gap_s < 2
    _, now = steady(gap_s, 100, pace, now)
    assert (pace.per_second(now) or 0.0) * gap_s == pytest.approx(1.0, rel=0.05)


@given(gap_s=POSITIVE, stall=st.floats(min_value=1, max_value=100))
def test_a_stall_that_is_over_is_forgotten(gap_s: float, stall: float) -> None:
    pace, now = steady(gap_s, 100)
    pace.taken(now + stall * gap_s)
    _, now = steady(gap_s, 200, pace, now + stall * gap_s)
    assert (pace.per_second(now) or 0.0) * gap_s == pytest.approx(1.0, rel=0.05)


@given(old_gap_s=POSITIVE, gap_s=POSITIVE, pause_s=st.floats(min_value=61, max_value=1e5))
def test_what_was_measured_long_ago_is_forgotten(old_gap_s: float, gap_s: float, pause_s: float) -> None:
    pace, now = steady(old_gap_s, 100)
    pace.wait_ends()
    assert pace.is_known(now + 59)
    assert not pace.is_known(now + pause_s) and pace.per_second(now + pause_s) is None
    _, later = steady(gap_s, 7, pace, now + pause_s)
    assert not pace.is_known(later)
    assert (pace.per_second(later) or 0.0) * gap_s == pytest.approx(1.0, rel=1e-3), "as if it were new"


def test_a_long_wait_without_a_place_is_not_forgotten() -> None:
    pace, now = steady(0.1, 20)
    pace.wait_begins(now + 600)
    assert pace.is_known(now + 600) and (pace.per_second(now + 600) or 1.0) < 0.1


# ---- the decision


@given(before=st.integers(0, 10**6), pace=st.none() | POSITIVE, longest_s=POSITIVE, left_s=POSITIVE)
def test_nothing_is_refused_while_there_is_no_line(before: int, pace: float | None, longest_s: float, left_s: float) -> None:
    assert shed(Prospect(0, before, pace), longest_s, left_s) is None


@given(waiting=st.integers(1, 10**6), longest_s=POSITIVE, left_s=POSITIVE)
def test_an_unknown_pace_refuses_nobody(waiting: int, longest_s: float, left_s: float) -> None:
    assert shed(Prospect(waiting, waiting, None), longest_s, left_s) is None


@given(waiting=st.integers(1, 10**4), share=st.floats(0, 1), pace=POSITIVE, longest_s=POSITIVE, left_s=POSITIVE)
def test_who_would_wait_longer_than_it_may_is_refused_and_told_when(
    waiting: int, share: float, pace: float, longest_s: float, left_s: float
) -> None:
    before = math.floor(share * waiting)
    wait_s = (before + 1) / pace
    refusal = shed(Prospect(waiting, before, pace), longest_s, left_s)
    assert (refusal is not None) == (wait_s > longest_s or wait_s > left_s)
    if refusal is not None:
        assert refusal.reason is (ShedReason.DEADLINE if left_s < longest_s else ShedReason.PREDICTED_WAIT)
        assert refusal.retry_after_s == pytest.approx(min(wait_s, LONGEST_RETRY_S))
        assert refusal.outcome is Outcome.OVERLOADED and refusal.retryable


# ---- whose turn it would be


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 50)), max_size=40),
    st.sampled_from("abcd"),
    st.integers(-1, 1),
    st.integers(0, 10),
)
def test_who_goes_before_is_who_would_have_gone(
    waiting: list[tuple[str, int, int]], tenant: str, priority: int, taken: int
) -> None:
    weights = {"a": 1.0, "b": 3.0, "c": 0.5, "d": 1.0}
    passes = 4
    queue: FairQueue[Any] = FairQueue(passes)
    for number, (name, each, cost) in enumerate(waiting):
        queue.push(number, Share(name, weights[name], each), cost)
    for _ in range(min(taken, len(waiting))):
        queue.take(queue.peek())
    share = Share(tenant, weights[tenant], priority)
    predicted = queue.before(share)
    assert predicted <= len(queue)
    queue.push("newcomer", share, cost=7)
    went = 0
    while (item := queue.peek()) != "newcomer":
        queue.take(item)
        went += 1
    others = {each for _, each, _ in waiting} - {priority}
    if not others:
        assert predicted == went
    else:  # the guard's turns are counted in whole ones, and some are under way
        assert abs(predicted - went) <= 2 * (passes + len(others)) + went // passes


# ---- the router


def world_of(**config: Any) -> World:
    """One worker, one answer at a time."""
    world = World(**{"decode_overcommit": 0, "max_predicted_wait_s": 0.5, **config})
    world.join("decode", "d", max_sequences=1)
    return world


def finish(world: World, request: Request) -> None:
    task = world.task_of(request)
    world.tasks.remove(task)
    world.say(task, MAX_TOKENS, "length")


async def settle(world: World, gap_s: float = 0.02, places: int = 10) -> None:
    """Makes the pace known: places come every `gap_s`, and somebody waits for each; nobody does in the end."""
    for _ in range(places + 1):
        world.accept()
    for request in world.requests[-places - 1 :]:
        await asyncio.sleep(gap_s)
        finish(world, request)


def accepted(world: World, tenant: str = "default", most: int = 1000) -> int:
    """How many are let in until one is refused."""
    for count in range(most):
        try:
            world.accept(tenant)
        except Shed:
            return count
    return most


async def test_who_would_wait_too_long_is_refused_at_once_and_counted() -> None:
    world = world_of()
    await settle(world)
    count = accepted(world)
    assert 5 < count < 35, "half a second at 20 ms each and more, as sleeps are late"
    with pytest.raises(Shed, match="max_predicted_wait_s") as refused:
        world.dispatcher.check_capacity()
    assert refused.value.reason is ShedReason.PREDICTED_WAIT
    assert refused.value.retry_after_s is not None and 0.5 < refused.value.retry_after_s < 5
    world.dispatcher._accounting.refused(refused.value, Caller("default"))
    assert world.metrics.value("serval_sheds_total", reason="predicted_wait") == 1
    assert world.metrics.value("serval_rejections_total", reason="overloaded") == 1
    assert world.metrics.value("serval_predicted_wait_seconds") == pytest.approx(0.5, rel=0.3)


async def test_it_lets_in_again_as_soon_as_the_line_is_gone() -> None:
    world = world_of()
    await settle(world)
    accepted(world)
    for request in [request for request in world.requests if request.end is None]:
        finish(world, request)
    assert world.metrics.value("serval_predicted_wait_seconds") == 0
    assert accepted(world) >= 5


async def test_at_the_start_the_length_of_the_line_alone_refuses() -> None:
    world = world_of(max_waiting=40)
    assert accepted(world) == 40
    with pytest.raises(Shed) as refused:
        world.accept()
    assert refused.value.reason is ShedReason.MAX_WAITING


async def test_by_length_alone_where_that_is_asked_for() -> None:
    world = world_of(shedding="line_length", max_waiting=100)
    await settle(world)
    assert accepted(world) == 100


async def test_a_deadline_that_cannot_be_kept_is_told_now() -> None:
    world = world_of(max_predicted_wait_s=None)
    await settle(world)
    for _ in range(20):
        world.accept()
    world.dispatcher.check_capacity(timeout_s=60)
    with pytest.raises(Shed, match="deadline") as refused:
        world.dispatcher.check_capacity(timeout_s=0.1)
    assert refused.value.reason is ShedReason.DEADLINE


async def test_a_flood_is_refused_and_who_asks_for_little_is_not() -> None:
    world = world_of(tenants={"flood": TenantLimits(), "modest": TenantLimits(), "urgent": TenantLimits(priority=1)})
    await settle(world)
    accepted(world, "flood")
    assert world.accept("modest").end is None
    assert world.accept("urgent").end is None
    with pytest.raises(Shed):
        world.accept("flood")


async def test_who_lost_its_worker_is_not_refused() -> None:
    world = world_of(worker_return_s=5.0)
    await settle(world)
    begun = world.accept()
    accepted(world)
    world.say(world.task_of(begun), 2, None)
    assert begun.decode is not None
    world.members.leave(begun.decode, "killed")
    world.join("decode", "e", max_sequences=1)
    assert begun.is_at_decode and begun.end is None, "first in turn, however long the line"
    finish(world, begun)
    assert begun.end is not None


async def test_another_answer_to_an_accepted_prompt_is_not_refused() -> None:
    world = world_of()
    await settle(world)
    first = world.accept()
    accepted(world)
    assert world.accept(sibling_of=first).end is None


async def test_who_can_go_to_a_worker_that_nobody_waits_for_is_let_in() -> None:
    world = world_of()
    small = world.join("decode", "small", max_sequences=1, max_model_len=20)
    await settle(world)
    for _ in range(60):
        with_long_answer(world)
    world.dispatcher.check_capacity()
    assert world.accept().decode is small
    assert world.accept().decode is None, "the first that waits for it"
    assert accepted(world) < 20


async def test_places_that_others_find_at_once_are_no_measure_while_somebody_waits_for_a_certain_worker() -> None:
    world = world_of(max_predicted_wait_s=0.1)
    small = world.join("decode", "small", max_sequences=1, max_model_len=20)
    for _ in range(2):
        with_long_answer(world)
    for _ in range(12):
        await asyncio.sleep(0.02)
        request = world.accept()
        assert request.decode is small
        finish(world, request)
    assert accepted(world, most=50) == 50, "the rate at which requests came is not the rate at which they could be placed"


async def test_who_waits_for_a_certain_worker_does_not_make_the_others_look_slow() -> None:
    world = world_of()
    world.join("decode", "small", max_sequences=1, max_model_len=20)
    await settle(world, places=20)
    for _ in range(2):
        with_long_answer(world)
    predicted_s = world.metrics.value("serval_predicted_wait_seconds")
    assert 0.005 < predicted_s < 0.5
    await asyncio.sleep(0.3)
    world.report(world.workers[0])
    assert world.metrics.value("serval_predicted_wait_seconds") == pytest.approx(predicted_s)


async def test_a_worker_that_joins_makes_the_pace_unknown_and_what_it_takes_at_once_is_no_measure() -> None:
    world = world_of()
    await settle(world)
    for _ in range(5):
        world.accept()
    assert world.metrics.value("serval_predicted_wait_seconds") > 0
    world.join("decode", "e", max_sequences=3)
    assert world.metrics.value("serval_queue_length", tenant="default") == 1
    assert world.metrics.value("serval_predicted_wait_seconds") == 0, "not known"
    assert accepted(world, most=100) == 100


def with_long_answer(world: World) -> None:
    try:
        world.accept(max_tokens=100)
    except Shed:
        return


async def test_displaced_and_timed_out_requests_are_counted_by_reason() -> None:
    world = world_of(max_waiting=3, queue_timeout_s=0.02, tenants={"flood": TenantLimits(), "modest": TenantLimits()})
    flood = [world.accept("flood") for _ in range(3)]
    world.accept("modest")
    assert flood[-1].end is not None and flood[-1].end.outcome is Outcome.OVERLOADED
    assert world.metrics.value("serval_sheds_total", reason="displaced", tenant="flood") == 1
    async with asyncio.timeout(5):
        while flood[1].end is None:  # noqa: ASYNC110 - a timer ends it
            await asyncio.sleep(0.001)
    assert world.metrics.value("serval_sheds_total", reason="queue_timeout", tenant="flood") == 1


async def test_who_waits_in_the_line_of_a_draining_router_gets_the_next_place() -> None:
    world = world_of()
    running, waiting, last = (world.accept() for _ in range(3))
    world.dispatcher.is_draining = True
    idle = asyncio.create_task(world.dispatcher.wait_idle())
    finish(world, running)
    assert waiting.is_at_decode and not last.is_at_decode
    finish(world, waiting)
    finish(world, last)
    await asyncio.wait_for(idle, 5)
    assert [request.end.outcome for request in (running, waiting, last) if request.end] == [Outcome.LENGTH] * 3
