"""What becomes of requests whose workers die: poison is found and refused, innocents only wait."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.outcomes import Outcome
from router.losses import LONGEST_PAUSE_S, Suspicion, Trials, Verdict, judge, pause_s
from router.request import Request
from tests.unit.router.dispatch_world import MAX_TOKENS, World


def kill(world: World, request: Request) -> None:
    """The worker that has the request dies."""
    assert request.is_at_decode and request.decode is not None
    world.members.leave(request.decode, "its stream broke")


async def at_worker(request: Request) -> None:
    async with asyncio.timeout(5):
        while not request.is_at_decode:  # noqa: ASYNC110 - the pause before a retry is on the loop's clock
            await asyncio.sleep(0.005)


def outcome(request: Request) -> Outcome | None:
    return request.end.outcome if request.end is not None else None


async def test_a_request_that_two_workers_died_on_is_refused_and_counted() -> None:
    world = World(worker_return_s=30.0)
    for name in "abc":
        world.join("decode", name)
    request = world.accept()
    world.say(world.task_of(request), 2, None)
    kill(world, request)
    await at_worker(request)
    kill(world, request)
    assert outcome(request) is Outcome.POISON
    assert request.end is not None and "workers died on this request" in request.end.message
    assert world.metrics.value("serval_requests_total", outcome="poison") == 1
    assert world.metrics.value("serval_retries_total", reason="worker_lost") == 1
    assert len(world.members.all) == 1, "no third worker had to die"


async def test_progress_clears_a_request() -> None:
    """Workers that are killed from outside: each attempt brings tokens."""
    world = World(worker_return_s=30.0)
    request = world.accept()
    for attempt in range(MAX_TOKENS - 1):
        world.join("decode", f"d{attempt}")
        await at_worker(request)
        world.say(world.task_of(request), 1, None)
        kill(world, request)
    world.join("decode", "last")
    await at_worker(request)
    world.say(world.task_of(request), 1, "length")
    assert outcome(request) is Outcome.LENGTH
    assert world.metrics.value("serval_retries_total", reason="worker_lost") == MAX_TOKENS - 1


@pytest.mark.parametrize("poisonous", [0, 5])
async def test_of_many_that_died_together_only_the_poison_is_refused(poisonous: int) -> None:
    """One request of many kills every worker that computes it, before it brings a token."""
    world = World(worker_return_s=30.0)
    requests = [world.accept() for _ in range(8)]
    poison, dead = requests[poisonous], 0
    async with asyncio.timeout(20):
        while any(request.end is None for request in requests):
            if not world.members.all:
                world.join("decode", f"d{dead}")
            if poison.is_at_decode:
                kill(world, poison)
                dead += 1
            for request in requests:
                if request is not poison and request.is_at_decode:
                    world.say(world.task_of(request), MAX_TOKENS, "length")
            await asyncio.sleep(0.002)
    assert outcome(poison) is Outcome.POISON
    assert {outcome(request) for request in requests if request is not poison} == {Outcome.LENGTH}
    assert dead <= 3


async def test_all_of_two_workers_that_died_at_once_survive() -> None:
    """A rack without power: nobody has brought a token between the two deaths, and nobody is poison."""
    world = World(worker_return_s=30.0)
    world.join("decode", "a")
    requests = [world.accept() for _ in range(16)]
    kill(world, requests[0])
    world.join("decode", "b")
    assert all(request.is_at_decode for request in requests)
    kill(world, requests[0])
    world.join("decode", "c")
    async with asyncio.timeout(20):
        while any(request.end is None for request in requests):
            at = [request for request in requests if request.is_at_decode]
            assert len(at) <= 1, "they are tried one by one"
            for request in at:
                world.say(world.task_of(request), MAX_TOKENS, "length")
            await asyncio.sleep(0.001)
    assert {outcome(request) for request in requests} == {Outcome.LENGTH}


def test_who_is_the_only_suspect_in_company_is_tried_once_more() -> None:
    """Of those on the second worker the others had brought tokens since: it may have been unlucky twice."""
    suspect, other = Suspicion(), Suspicion()
    assert judge([suspect]) == [Verdict.GO_ON]
    assert judge([suspect, other]) == [Verdict.APART, Verdict.GO_ON]
    suspect.is_apart = True
    assert judge([suspect, other])[0] is Verdict.POISON


async def test_a_suspect_that_is_cancelled_holds_up_no_other() -> None:
    world = World(worker_return_s=30.0)
    requests = [world.accept() for _ in range(3)]
    for name in "ab":
        world.join("decode", name)
        kill(world, requests[0])
    world.join("decode", "c")
    for request in requests:
        await at_worker(request)
        world.dispatcher.abandon(request)
    assert [outcome(request) for request in requests] == [Outcome.CANCELLED] * 3


async def test_a_prefill_worker_that_died_on_it_counts() -> None:
    world = World(worker_return_s=30.0)
    prefill = world.join("prefill", "p")
    world.join("decode", "a")
    request = world.accept(prompt=tuple(range(100)))
    assert request.prefill is prefill
    world.members.leave(prefill, "its stream broke")
    assert outcome(request) is None, "the decode worker computes it"
    kill(world, request)
    assert outcome(request) is Outcome.POISON


@pytest.mark.parametrize("has_died", [False, True])
async def test_an_orderly_end_is_no_death(has_died: bool) -> None:
    world = World(worker_return_s=30.0)
    request = world.accept()
    for name in "ab":
        worker = world.join("decode", name)
        await at_worker(request)
        world.members.leave(worker, "it closed its stream", has_died=has_died)
    assert outcome(request) is (Outcome.POISON if has_died else None)


async def test_silence_is_no_death_and_an_engine_that_stands_still_is_one() -> None:
    """A router that is cut off loses all its workers, again and again: that says nothing of its requests."""
    world = World()
    silent, stalled = world.join("decode", "silent"), world.join("decode", "stalled")
    silent.heard_at, stalled.heard_at, stalled.progressed_at = 0.0, 100.0, 0.0
    found = {worker.name: has_died for worker, _, has_died in world.members.overdue(100.0, silence_s=3.0, stall_s=60.0)}
    assert found == {"silent": False, "stalled": True}


async def test_what_a_stopping_worker_hands_back_goes_on_elsewhere_and_is_no_retry() -> None:
    world = World(max_retries=0)
    first, second = world.join("decode", "a"), world.join("decode", "b")
    request = world.accept()
    giver = request.decode
    task = world.task_of(request)
    world.say(task, 2, "unavailable", handed_back=True)
    assert request.decode is (second if giver is first else first), "and not the one that stops"
    assert (request.retries, request.output) == (0, request.output[:2])
    world.say(world.task_of(request), MAX_TOKENS, "length")
    assert outcome(request) is Outcome.LENGTH
    assert world.metrics.value("serval_retries_total", reason="moved") == 1


async def test_who_lost_its_only_worker_waits_longer_than_who_never_had_one() -> None:
    world = World(worker_wait_s=0.01, worker_return_s=30.0)
    worker = world.join("decode", "a")
    begun = world.accept()
    world.say(world.task_of(begun), 1, None)
    world.members.leave(worker, "its stream broke")
    fresh = world.accept()
    async with asyncio.timeout(5):
        while fresh.end is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (outcome(fresh), outcome(begun)) == (Outcome.UNAVAILABLE, None)
    world.join("decode", "a")
    await at_worker(begun)


# ---- the decisions


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_nobody_is_judged_for_company(deaths: list[int]) -> None:
    dead = [Suspicion(count) for count in deaths]
    verdicts = judge(dead)
    suspects, has_company = sum(count >= 1 for count in deaths), len(deaths) > 1
    assert verdicts.count(Verdict.POISON) == (0 if has_company else suspects)
    assert verdicts.count(Verdict.APART) == (suspects if has_company else 0)
    assert [one.deaths for one in dead] == [count + 1 for count in deaths]


def test_who_was_tried_apart_is_judged_alone() -> None:
    dead = [Suspicion(0), Suspicion(2, is_apart=True), Suspicion(0)]
    assert judge(dead) == [Verdict.GO_ON, Verdict.POISON, Verdict.GO_ON]


@given(st.integers(1, 40), st.floats(0, 600))
def test_pauses_grow_within_bounds_and_the_deadline(retry: int, left_s: float) -> None:
    pause = pause_s(retry, left_s)
    assert 0 <= pause <= min(LONGEST_PAUSE_S, left_s / 2)
    assert pause_s(1, left_s) == 0
    assert pause_s(retry, 600, draw=max) >= pause_s(retry - 1, 600, draw=max)


def test_pauses_differ() -> None:
    drawn = random.Random(1)
    assert len({pause_s(4, 600, draw=drawn.uniform) for _ in range(20)}) == 20


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=40))
def test_one_is_tried_at_a_time_and_nobody_is_forgotten(moves: list[tuple[bool, int]]) -> None:
    admitted: list[int] = []
    trials: Trials[int] = Trials(admitted.append)
    inside: set[int] = set()
    for enters, who in moves:
        if enters and who not in inside:
            inside.add(who)
            trials.enter(who)
        elif not enters:
            inside.discard(who)
            trials.leave(who)
        assert len(trials) == len(inside)
        assert bool(inside) == (bool(admitted) and admitted[-1] in inside), "somebody waits while nobody is tried"
