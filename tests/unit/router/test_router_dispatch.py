"""The dispatcher under any order of events: one outcome per accepted request, nothing counted anywhere when all have ended."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Overloaded, RateLimited, Unavailable
from protocol.outcomes import Outcome
from router.answers import Answers
from router.request import Request
from router.tenants.tenant import TenantLimits
from tests.unit.router.dispatch_world import MAX_TOKENS, PROMPT, World, token_at

Operation = tuple[str, int, int]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "accept", "accept", "accept", "sibling", "tokens", "tokens", "report", "finish", "fail", "lose", "join", "drain",
                "abandon", "deadline", "wait",
            ]
        ),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=60,
)  # fmt: skip
FAILURES = ["overloaded", "unavailable", "prefill_failed", "transfer_failed", "internal", "gibberish", "deadline", "invalid"]


async def perform(world: World, operation: Operation) -> None:
    what, a, b = operation
    if what in ("accept", "sibling"):
        first = world.requests[a % len(world.requests)] if what == "sibling" and world.requests else None
        with contextlib.suppress(RateLimited, Overloaded):
            world.accept(list(TENANTS)[b % len(TENANTS)], sibling_of=first)
    elif what == "join":
        world.join("prefill" if a % 3 == 0 else "decode", f"w{b % 3}", max_sequences=b % 3)
    elif what == "report" and world.workers:
        world.report(world.workers[a % len(world.workers)], waiting_for_blocks=b % 2, kv_blocks_total=4, kv_blocks_used=b % 4)
    elif what == "wait":
        await asyncio.sleep(0.001)
    elif what in ("lose", "drain") and world.workers:
        worker = world.workers[a % len(world.workers)]
        if what == "lose":
            world.members.leave(worker, "it was killed")
        else:
            worker.is_draining = True
    elif what in ("abandon", "deadline") and world.requests:
        request = world.requests[a % len(world.requests)]
        if what == "abandon":
            world.dispatcher.abandon(request)
        else:
            world.dispatcher._on_deadline(request)
    elif what in ("tokens", "finish", "fail") and world.tasks:
        task = world.tasks[a % len(world.tasks)]
        outcome = {"tokens": None, "finish": "length", "fail": FAILURES[b]}[what]
        world.say(task, MAX_TOKENS if what == "finish" else b % 4, outcome)
        if outcome:
            world.tasks.remove(task)
    if b:  # otherwise the orders are still on their way
        world.hear()


TENANTS = {
    "default": TenantLimits(),
    "tight": TenantLimits(max_concurrent=2, requests_per_minute=4, tokens_per_minute=100),
    "first": TenantLimits(priority=1, weight=3.0),
}
CONFIGS = st.fixed_dictionaries(
    {
        "decode_overcommit": st.integers(0, 2),
        "max_waiting": st.sampled_from([2, 1000]),
        "queue_timeout_s": st.sampled_from([0.0005, 30.0]),
        "worker_wait_s": st.sampled_from([0.0, 30.0]),
    }
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, CONFIGS)
def test_every_accepted_request_ends_exactly_once_and_leaves_nothing(
    operations: list[Operation], config: dict[str, Any]
) -> None:
    async def scenario() -> None:
        world = World(tenants=TENANTS, **config)
        for name in ("w0", "w1"):
            world.join("decode", name, max_sequences=2)
        for operation in operations:
            await perform(world, operation)
            for request in world.requests:
                whole = [token_at(len(PROMPT) + index) for index in range(MAX_TOKENS)]
                assert request.output == whole[: len(request.output)], "a token was lost, repeated or out of order"
        world.hear()
        while world.tasks:
            world.say(world.tasks.pop(), MAX_TOKENS, "length")
            world.hear()
        assert len(world.dispatcher._line._queue) == 0, "somebody waits for room where there is some"
        world.dispatcher.end_all("over")
        assert [request for request in world.requests if request.end is None] == []
        assert world.ended_count() == len(world.requests)
        assert world.dispatcher.open_requests == 0
        await asyncio.wait_for(world.dispatcher.wait_idle(), 1)
        for worker in world.workers:
            assert (worker.in_flight, worker.in_flight_tokens, worker.open_requests) == (0, 0, {})
        assert world.metrics.value("serval_num_requests_running") == 0
        assert world.metrics.value("serval_num_requests_waiting") == 0
        assert world.metrics.value("serval_queue_length") == 0
        assert [tenant.open_requests for tenant in world.dispatcher.tenants] == [0, 0, 0]
        for request in world.requests:
            received = [token for delta in await Answers([request]).whole() for token in delta.token_ids]
            assert received == request.output
            assert request.end is not None
            if request.end.outcome is Outcome.LENGTH:
                assert len(request.output) == MAX_TOKENS

    asyncio.run(scenario())


async def test_what_a_slow_client_has_not_taken_comes_in_one_piece() -> None:
    world = World()
    world.join("decode", "d")
    request = world.accept()
    world.hear()
    world.say(world.tasks[0], 1, None)
    pieces = Answers([request]).pieces()
    assert len((await anext(pieces))[0].delta.token_ids) == 1
    for _ in range(3):
        world.say(world.tasks[0], 1, None)
    assert len((await anext(pieces))[0].delta.token_ids) == 3


async def test_a_retry_is_counted_against_max_retries_not_for_ever() -> None:
    world = World(max_retries=2)
    request = world.accept()
    for attempt in range(3):
        worker = world.join("decode", f"d{attempt}")
        async with asyncio.timeout(5):
            while not request.is_at_decode:  # noqa: ASYNC110 - the pause before a retry is on the loop's clock
                await asyncio.sleep(0.005)
        world.say(world.task_of(request), 1, None)
        world.members.leave(worker, "killed")
    assert request.end is not None
    assert (request.end.outcome, request.retries) == (Outcome.UNAVAILABLE, 2)


async def test_the_word_that_an_answer_ended_may_be_lost_with_its_worker() -> None:
    world = World()
    worker = world.join("decode", "d")
    request = world.accept()
    world.hear()
    world.say(world.tasks[0], MAX_TOKENS, None)
    world.members.leave(worker, "killed")
    assert request.end is not None
    assert request.end.outcome is Outcome.LENGTH


async def test_a_bug_in_one_answer_ends_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.join("decode", "d")
    broken, other = world.accept(), world.accept()
    world.hear()

    def explode(*_: object) -> bool:
        raise ValueError("a bug")

    monkeypatch.setattr(broken, "add_all", explode)
    for task in list(world.tasks):
        world.say(task, MAX_TOKENS, "length")
    assert broken.end is not None and other.end is not None
    assert (broken.end.outcome, other.end.outcome) == (Outcome.INTERNAL, Outcome.LENGTH)


async def test_a_bug_at_a_first_token_leaves_the_count_of_streams_right(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.join("decode", "d")
    broken, other = world.accept(), world.accept()
    leave_prefill, is_first = world.dispatcher._attempts.leave_prefill, iter([True])

    def explode_once(request: Request) -> None:
        if next(is_first, False):
            raise ValueError("a bug")
        leave_prefill(request)

    monkeypatch.setattr(world.dispatcher._attempts, "leave_prefill", explode_once)
    world.say(world.task_of(broken), 1, None)
    world.say(world.task_of(other), 1, None)
    assert broken.end is not None and broken.end.outcome is Outcome.INTERNAL
    value = world.metrics.value
    assert (value("serval_num_requests_running"), value("serval_num_requests_waiting")) == (1, 0)
    world.say(world.task_of(other), MAX_TOKENS, "length")
    assert (value("serval_num_requests_running"), value("serval_num_requests_waiting")) == (0, 0)


@pytest.mark.parametrize(
    ("config", "prepare", "error"),
    [
        ({"max_open_requests": 1}, lambda world: world.accept(), Overloaded),
        ({"max_waiting": 1}, lambda world: world.accept(), Overloaded),
        ({}, lambda world: setattr(world.dispatcher, "is_draining", True), Unavailable),
    ],
)
async def test_refusals_accept_nothing(config: dict[str, Any], prepare: Callable[[World], Any], error: type[Exception]) -> None:
    world = World(**config)
    prepare(world)
    before = world.dispatcher.open_requests
    with pytest.raises(error):
        world.accept()
    assert world.dispatcher.open_requests == before
    world.dispatcher.end_all("over")


async def test_an_answer_whose_last_text_cannot_be_decoded_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.join("decode", "d")
    request = world.accept()

    def explode(*_: object) -> tuple[str, bool]:
        raise ValueError("a bug")

    monkeypatch.setattr(request.text, "finish", explode)
    world.say(world.task_of(request), MAX_TOKENS, "length")
    assert request.end is not None
    assert request.end.outcome is Outcome.INTERNAL
    assert (world.dispatcher.open_requests, world.ended_count()) == (0, 1)


async def test_a_bug_in_one_request_of_a_lost_worker_ends_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(worker_wait_s=5.0)
    worker = world.join("decode", "d")
    broken, other = world.accept(), world.accept()

    can_go_on = world.dispatcher._can_go_on

    def explode_for_one(request: Request, outcome: Outcome) -> bool:
        if request is broken:
            raise ValueError("a bug")
        return can_go_on(request, outcome)

    monkeypatch.setattr(world.dispatcher, "_can_go_on", explode_for_one)
    world.members.leave(worker, "killed")
    assert broken.end is not None
    assert broken.end.outcome is Outcome.INTERNAL
    world.join("decode", "e")
    assert other.end is None
    assert other.decode is world.workers[-1]
    world.dispatcher.end_all("over")
