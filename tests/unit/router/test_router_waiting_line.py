"""What waits where: workers get what keeps them busy, the rest waits in the router's line and goes by weight and priority."""

import asyncio
from typing import Any

import pytest

from protocol import cluster_pb2
from protocol.errors import Overloaded
from protocol.outcomes import Outcome
from router.placement.window import has_compute_room
from router.request import Request
from router.tenants.caller import Caller
from router.tenants.tenant import LimitReached, TenantLimits
from router.workers import Worker
from tests.unit.router.dispatch_world import MAX_TOKENS, PROMPT, World

ONE_AT_A_TIME = {"decode_overcommit": 0}


def world_of(sequences: int = 1, **config: Any) -> tuple[World, Worker]:
    world = World(**{**ONE_AT_A_TIME, **config})
    return world, world.join("decode", "d", max_sequences=sequences)


def finish(world: World, request: Request, **timings: float) -> None:
    task = world.task_of(request)
    world.tasks.remove(task)
    world.say(task, MAX_TOKENS, "length", **timings)


def outcome(request: Request) -> Outcome | None:
    return request.end.outcome if request.end is not None else None


def placed(world: World) -> list[Request]:
    """Those at workers, in the order of placement."""
    return sorted((request for request in world.requests if request.is_at_decode), key=lambda request: request.number)


async def order_of_placement(world: World) -> list[str]:
    """Tenants, in the order in which their requests are computed one at a time."""
    order = []
    while current := placed(world):
        order.append(current[0].charge.tenant.name)
        finish(world, current[0])
    return order


# ---- workers have room or not


@pytest.mark.parametrize("overcommit", [0, 2])
async def test_a_worker_gets_what_it_computes_at_once_and_a_few_more(overcommit: int) -> None:
    world, worker = world_of(3, decode_overcommit=overcommit)
    for _ in range(8):
        world.accept()
    assert len(placed(world)) == 3 + overcommit
    assert world.metrics.value("serval_queue_length", tenant="default") == 5 - overcommit
    world.say(world.task_of(world.requests[1]), 1, None)
    assert len(placed(world)) == 3 + overcommit, "a first token frees nothing here"
    finish(world, world.requests[1])
    assert placed(world)[-1] is world.requests[3 + overcommit], "who came first of those that wait"
    assert worker.in_flight == 3 + overcommit


async def test_what_a_worker_does_not_say_bounds_nothing() -> None:
    world, _ = world_of(sequences=0)
    for _ in range(50):
        world.accept()
    assert len(placed(world)) == 50


async def test_requests_of_other_routers_take_room_too_and_a_report_moves_the_line() -> None:
    world, worker = world_of(4)
    world.report(worker, running=4)
    request = world.accept()
    assert not request.is_at_decode
    world.report(worker, running=3)
    assert request.is_at_decode


async def test_full_kv_blocks_hold_requests_back() -> None:
    world, _ = world_of(decode_overcommit=1)
    world.members.close("over")
    worker = world.join("decode", "e", block_size=16, kv_blocks=4)
    world.accept()
    world.report(worker, running=1, kv_blocks_total=4, kv_blocks_used=4)
    assert [world.accept().is_at_decode for _ in range(3)] == [True, False, False], "one may wait there"
    world.report(worker, running=2, kv_blocks_total=4, kv_blocks_used=2)
    assert len(placed(world)) == 4


async def test_prompts_wait_here_while_prefill_has_enough_to_compute() -> None:
    world, _ = world_of(0, prefill_window_s=0.045)
    prefill = world.join("prefill", "p")
    assert world.accept().prefill is prefill
    world.report(prefill, running=1, queued_tokens=3, prefill_tokens_per_s=100.0)
    second, third = world.accept(), world.accept()
    assert second.is_at_decode and not third.is_at_decode, "two prompts whatever they take; the third has to wait"
    world.say(world.task_of(world.requests[0]), 1, None)
    assert third.is_at_decode


async def test_prompts_of_other_routers_count_as_far_as_they_cannot_be_computed_yet() -> None:
    now, speed = asyncio.get_running_loop().time(), 1000.0
    _, worker = world_of(0)
    load = cluster_pb2.LoadReport(running=1, queued_tokens=300, prefill_tokens_per_s=speed)
    worker.take_report(load, now)
    assert not has_compute_room(worker, 0.1, now)
    assert not has_compute_room(worker, 0.1, now + 0.15), "half of what the report said is left"
    assert has_compute_room(worker, 0.1, now + 0.25)
    worker.computing_tokens = 101  # this router's own do not fade
    assert not has_compute_room(worker, 0.1, now + 10)


async def test_a_worker_that_joins_takes_over_the_line() -> None:
    world, _ = world_of()
    requests = [world.accept() for _ in range(3)]
    other = world.join("decode", "other", max_sequences=2)
    assert [request.decode for request in requests[1:]] == [other, other]


# ---- some can go where others cannot

LONG = 100
"""Tokens of an answer that a small worker cannot hold."""


def with_small_worker(**config: Any) -> tuple[World, Worker, Worker]:
    """One worker that takes all, one that takes short requests alone; each computes one at a time."""
    world, large = world_of(**config)
    return world, large, world.join("decode", "small", max_sequences=1, max_model_len=20)


async def test_who_waits_for_one_worker_holds_up_nobody_who_can_go_to_another() -> None:
    world, large, small = with_small_worker()
    running, waiting = (world.accept(max_tokens=LONG) for _ in range(2))
    assert (running.decode, waiting.decode) == (large, None)
    short = [world.accept() for _ in range(3)]
    assert [request.decode for request in short] == [small, None, None]
    finish(world, short[0])
    assert short[1].decode is small and waiting.decode is None
    finish(world, running)
    assert waiting.decode is large, "it was first of those that may go there"
    assert short[2].decode is None


async def test_nobody_gets_past_another_to_a_worker_that_both_may_go_to() -> None:
    world = World(**ONE_AT_A_TIME)
    large = world.join("decode", "e", block_size=16, kv_blocks=8)
    world.accept()
    world.report(large, running=1, kv_blocks_total=4, kv_blocks_used=3)
    other = world.join("decode", "small", max_sequences=1, max_model_len=20)
    wide = world.accept(prompt=tuple(range(20)), max_tokens=LONG)
    assert wide.decode is None, "no room for its prompt"
    narrow = [world.accept(max_tokens=LONG) for _ in range(2)]
    assert [request.decode for request in narrow] == [None, None], "one would fit, and would take what is becoming free"
    assert world.accept().decode is other
    world.report(large, running=1, kv_blocks_total=8, kv_blocks_used=4)
    assert wide.decode is large


async def test_a_request_that_a_worker_gave_back_waits_for_the_others_alone() -> None:
    world = World(**ONE_AT_A_TIME, max_retries=2)
    first, second = (world.join("decode", name, max_sequences=1) for name in "ab")
    begun, other = world.accept(), world.accept()
    assert (begun.decode, other.decode) == (first, second)
    task = world.task_of(begun)
    world.tasks.remove(task)
    world.say(task, 0, "overloaded")
    assert not begun.is_at_decode, "it may only go to b, which is full"
    assert world.accept().decode is first
    finish(world, other)
    assert begun.decode is second


async def test_going_past_others_is_paid_for() -> None:
    world, large, small = with_small_worker(tenants={"greedy": TenantLimits(), "modest": TenantLimits()})
    running = world.accept("modest", max_tokens=LONG)
    blocked = world.accept("greedy", max_tokens=LONG)
    shorts = [world.accept("greedy") for _ in range(3)]
    other = world.accept("modest", max_tokens=LONG)
    assert (running.decode, shorts[0].decode, blocked.decode, other.decode) == (large, small, None, None)
    finish(world, running)
    assert other.decode is large and blocked.decode is None, "greedy has had more than modest"


# ---- turns


async def test_tenants_take_turns_by_weight() -> None:
    world, _ = world_of(tenants={"big": TenantLimits(weight=3.0), "small": TenantLimits()})
    for _ in range(12):
        world.accept("big")
    for _ in range(4):
        world.accept("small")
    order = await order_of_placement(world)
    assert order[:9].count("small") in (2, 3) and len(order) == 16
    assert order[1:9].count("big") in (6, 7)


async def test_a_higher_priority_goes_first_and_leaves_a_turn() -> None:
    world, _ = world_of(tenants={"urgent": TenantLimits(priority=1), "batch": TenantLimits()}, priority_turns=4)
    world.accept("batch")
    for _ in range(3):
        world.accept("batch")
    for _ in range(12):
        world.accept("urgent")
    order = await order_of_placement(world)
    assert order[:6] == ["batch", "urgent", "urgent", "urgent", "urgent", "batch"], "the fifth turn is the lower class's"


async def test_who_lost_its_worker_goes_before_all() -> None:
    world = World(**ONE_AT_A_TIME, tenants={"urgent": TenantLimits(priority=1000)})
    first, second = (world.join("decode", name, max_sequences=1) for name in "ab")
    begun, other = world.accept(), world.accept()
    waiting = world.accept("urgent")
    world.say(world.task_of(begun), 2, None)
    assert begun.decode is not None
    world.members.leave(begun.decode, "killed")
    finish(world, other)
    assert begun.is_at_decode and not waiting.is_at_decode
    world.say(world.task_of(begun), MAX_TOKENS, "length")
    assert begun.output == [len(PROMPT) + index for index in range(MAX_TOKENS)]
    assert waiting.is_at_decode
    assert first is not second


# ---- waits end


async def test_who_waits_too_long_is_told_when_to_retry() -> None:
    world, _ = world_of(queue_timeout_s=0.02)
    running, waiting = world.accept(), world.accept()
    await asyncio.wait_for(wait_ended(waiting), 5)
    assert outcome(waiting) is Outcome.OVERLOADED and outcome(running) is None
    assert waiting.end is not None and "queue_timeout_s" in waiting.end.message
    assert waiting.end.retry_after_s == 0.02, "nothing has moved, so no pace is known"


async def wait_ended(request: Request) -> None:
    while request.end is None:  # noqa: ASYNC110 - a timer ends it, and a deadline bounds this
        await asyncio.sleep(0.001)


async def test_retry_after_follows_the_pace_of_the_line() -> None:
    world, _ = world_of(max_waiting=6)
    for _ in range(6):
        world.accept()
    begin_s = asyncio.get_running_loop().time()
    for request in list(world.requests[:3]):
        await asyncio.sleep(0.05)
        finish(world, request)
    pause_s = (asyncio.get_running_loop().time() - begin_s) / 3
    for _ in range(3):
        world.accept()
    with pytest.raises(Overloaded) as refused:
        world.accept()
    assert refused.value.retry_after_s == pytest.approx(5 * pause_s, rel=0.3)


async def test_without_any_worker_the_shorter_wait_ends_it_and_a_join_saves_it() -> None:
    world = World(worker_wait_s=0.02, queue_timeout_s=30.0)
    lost = world.accept()
    await asyncio.wait_for(wait_ended(lost), 5)
    assert outcome(lost) is Outcome.UNAVAILABLE
    saved = world.accept()
    world.join("decode", "d")
    assert saved.is_at_decode


async def test_the_last_worker_s_loss_ends_the_line_within_the_shorter_wait() -> None:
    world, worker = world_of(worker_wait_s=0.02, max_retries=0)
    world.accept()
    waiting = world.accept()
    world.members.leave(worker, "killed")
    await asyncio.wait_for(wait_ended(waiting), 5)
    assert outcome(waiting) is Outcome.UNAVAILABLE


async def test_in_a_full_line_the_greediest_makes_way_for_others() -> None:
    world, _ = world_of(max_waiting=5)
    for _ in range(5):
        world.accept("default")
    with pytest.raises(Overloaded, match="max_waiting"):
        world.dispatcher.check_capacity()
    world, _ = world_of(max_waiting=5, tenants={"flood": TenantLimits(), "modest": TenantLimits()})
    flood = [world.accept("flood") for _ in range(5)]
    with pytest.raises(Overloaded):
        world.accept("flood")
    world.dispatcher.check_capacity(Caller("modest"))
    modest = world.accept("modest")
    assert outcome(flood[-1]) is Outcome.OVERLOADED and outcome(modest) is None
    assert flood[-1].end is not None and flood[-1].end.retry_after_s


# ---- limits


async def test_a_limit_refuses_before_anything_is_done_and_counts_by_what_ended() -> None:
    world, _ = world_of(4, tenants={"acme": TenantLimits(max_concurrent=1)})
    first = world.accept("acme")
    with pytest.raises(LimitReached, match="max_concurrent"):
        world.dispatcher.check_capacity(Caller("acme"))
    world.accept("default")
    finish(world, first)
    world.accept("acme")


async def test_what_never_reached_a_worker_is_given_back() -> None:
    world = World(tenants={"acme": TenantLimits(requests_per_minute=1, tokens_per_minute=10)})
    lost = world.accept("acme")
    await asyncio.wait_for(wait_ended(lost), 5)
    world.join("decode", "d")
    finish(world, world.accept("acme"))
    with pytest.raises(LimitReached):
        world.accept("acme")


# ---- siblings


async def test_siblings_follow_the_first_to_its_worker_once_the_prompt_is_there() -> None:
    world = World()
    for name in "abc":
        world.join("decode", name)
    first = world.accept()
    others = [world.accept(sibling_of=first) for _ in range(2)]
    task = world.task_of(first)
    world.say(task, 1, None)
    assert not any(request.is_at_decode for request in others), "the first token may come from prefill"
    world.say(task, 1, None)
    assert [request.decode for request in others] == [first.decode, first.decode]
    assert world.accept(sibling_of=first).decode is first.decode, "the prompt is there already"
    for request in world.requests:
        finish(world, request)
    assert [outcome(request) for request in world.requests] == [Outcome.LENGTH] * 4


async def test_siblings_do_not_wait_for_a_first_that_failed_nor_follow_a_full_worker() -> None:
    world = World(**ONE_AT_A_TIME)
    for name in "ab":
        world.join("decode", name, max_sequences=1)
    first = world.accept()
    sibling = world.accept(sibling_of=first)
    cancelled = world.accept(sibling_of=first)
    world.dispatcher.abandon(cancelled)
    world.dispatcher.abandon(first)
    assert sibling.is_at_decode and not cancelled.is_at_decode
    finish(world, sibling)
    again = world.accept()
    follower = world.accept(sibling_of=again)
    world.say(world.task_of(again), 2, None)
    assert follower.is_at_decode and follower.decode is not again.decode


# ---- cost and figures


async def test_figures_add_up_every_attempt_and_say_where_it_was_computed() -> None:
    prices = {"prefill": {"gpu_hour_usd": 3.6}, "decode": {"gpu_hour_usd": 7.2, "gpus": 2}}
    world = World(cost=prices, tenants={"acme": TenantLimits()})
    world.join("prefill", "p")
    world.join("decode", "a")
    request = world.accept("acme")
    task = world.task_of(request)
    world.tasks.remove(task)
    world.say(task, 1, "transfer_failed", prefill_busy_s=2.0)
    finish(world, request, prefill_busy_s=1.0, decode_busy_s=10.0, prefilled_locally=True)
    figures = request.figures
    assert figures.cost_usd == pytest.approx(0.003 + 10 * 0.004)
    assert (figures.prefill_worker, figures.decode_worker) == ("", "a")
    assert figures.ttft_s > 0 and figures.tokens_per_second > 0
    cost = {"tenant": "acme"}
    assert world.metrics.value("serval_cost_dollars_total", pool="prefill", reason="retried", **cost) == pytest.approx(0.002)
    assert world.metrics.value("serval_cost_dollars_total", pool="decode", reason="served", **cost) == pytest.approx(0.04)
    assert world.metrics.value("serval_cost_dollars_total", pool="prefill", reason="served", **cost) == pytest.approx(0.001), (
        "a prompt that was then computed by decode"
    )


async def test_a_cancelled_answer_s_cost_is_counted_when_its_worker_says_it() -> None:
    world, worker = world_of()
    request = world.accept()
    task = world.task_of(request)
    world.dispatcher.abandon(request)
    assert worker.in_flight == 0
    world.say(task, 0, "cancelled", decode_busy_s=1.8)
    world.say(task, 0, "cancelled", decode_busy_s=1.8)
    assert world.metrics.value("serval_cost_dollars_total", pool="decode", reason="failed") == pytest.approx(0.001)


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.DEADLINE])
async def test_what_was_done_for_an_answer_nobody_waits_for_is_billed_to_its_tenant_once(outcome: Outcome) -> None:
    price = {"gpu_hour_usd": 3600.0}
    world = World(cost={"prefill": price, "decode": price}, tenants={"acme": TenantLimits()})
    world.join("prefill", "p")
    world.join("decode", "d")
    request = world.accept("acme")
    task = world.task_of(request)
    world.say(task, 1, None)
    world.dispatcher.abandon(request, outcome)
    assert request.owes_figures and request.figures.cost_usd == 0
    for _ in range(2):
        world.say(task, 0, str(outcome), prefill_busy_s=2.0, decode_busy_s=0.5)
    billed = {
        pool: world.metrics.value("serval_cost_dollars_total", pool=pool, reason="failed", tenant="acme")
        for pool in ("prefill", "decode")
    }
    assert billed == {"prefill": pytest.approx(2.0), "decode": pytest.approx(0.5)}
    assert not request.owes_figures and request.figures.cost_usd == pytest.approx(2.5)


async def test_without_busy_times_a_cost_is_unknown_and_stays_zero() -> None:
    world, _ = world_of()
    request = world.accept()
    finish(world, request, prefill_s=5.0, decode_s=5.0)
    assert request.figures.cost_usd == 0
