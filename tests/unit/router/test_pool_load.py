"""A pool's load is told by whom it waits for: prefill's queue is not decode's, and the other way round."""

import time

import pytest
from dispatch_world import World

from router.recent_answers import LEAST_ANSWERS, RecentAnswers

DECODE = {"kv_blocks": 100, "block_size": 4, "max_sequences": 10}
WINDOW_S = 10.0


async def test_prompts_that_wait_are_prefill_s() -> None:
    world = World(policy="least_loaded", prefill_window_s=0.001)
    prefill, decode = world.join("prefill", "p"), world.join("decode", "d", **DECODE)
    world.report(decode, kv_blocks_total=100)
    world.report(prefill, prefill_tokens_per_s=100.0)
    for _ in range(2):  # a prefill worker is given two at a time
        world.accept(prompt=(1,) * 40)
    world.report(prefill, prefill_tokens_per_s=100.0, queued_tokens=50, waiting=2, busy_s=3.0)
    for _ in range(3):
        world.accept(prompt=(1,) * 40)
    load = world.dispatcher.loads.read(WINDOW_S)
    assert (load.prefill_ready, load.decode_ready) == (1, 1)
    assert load.prefill_queue_s == pytest.approx((50 + 3 * 40) / 100)
    assert load.prefill_busy_s == pytest.approx(3.0)
    assert load.decode_queued == 0


async def test_requests_that_wait_for_blocks_are_decode_s_but_for_blocks_that_wait_for_prompts() -> None:
    world = World(policy="least_loaded", decode_overcommit=0)
    prefill, decode = world.join("prefill", "p"), world.join("decode", "d", **DECODE)
    world.report(prefill, prefill_tokens_per_s=100.0)
    world.report(decode, kv_blocks_total=100)
    world.accept(prompt=(1,) * 8)
    world.report(decode, kv_blocks_total=100, kv_blocks_used=100, kv_blocks_in_prefill=25, running=4, waiting_for_blocks=1)
    world.accept(prompt=(1,) * 40, max_tokens=40)
    load = world.dispatcher.loads.read(WINDOW_S)
    assert load.decode_used == pytest.approx(0.75), "what waits for prefill is no use of decode"
    assert load.prefill_queue_s == pytest.approx(0.25 * 40 / 100)
    of_the_line, of_the_worker = 0.75 * max(80 / 400, 1 / 10), 8 / 400
    assert load.decode_queued == pytest.approx(of_the_line + of_the_worker)


async def test_a_full_decode_worker_is_not_what_is_short_while_prefill_has_all_it_can_do() -> None:
    """More of decode would only hold more requests that wait for their prompts."""
    world = World(policy="least_loaded", decode_overcommit=0, prefill_window_s=0.001)
    prefill, decode = world.join("prefill", "p"), world.join("decode", "d", **DECODE)
    world.report(decode, kv_blocks_total=100)
    for _ in range(2):
        world.accept(prompt=(1,) * 40)
    world.report(prefill, prefill_tokens_per_s=100.0, queued_tokens=80, waiting=2)
    world.report(decode, kv_blocks_total=100, kv_blocks_used=100, kv_blocks_in_prefill=50, running=2)
    world.accept(prompt=(1,) * 40)
    load = world.dispatcher.loads.read(WINDOW_S)
    assert (load.decode_queued, load.prefill_queue_s) == (0.0, pytest.approx((80 + 40) / 100))


async def test_running_sequences_fill_a_worker_as_well_as_blocks_do() -> None:
    world = World()
    world.report(world.join("decode", "d", **DECODE), kv_blocks_total=100, kv_blocks_used=10, running=9)
    draining = world.join("decode", "e", **DECODE)
    draining.is_draining = True
    load = world.dispatcher.loads.read(WINDOW_S)
    assert load.decode_used == pytest.approx(0.9)
    assert (load.decode_ready, load.ttft_s, load.tpot_s) == (1, None, None)


def test_percentiles_of_the_last_answers() -> None:
    now = [0.0]
    answers = RecentAnswers(lambda: now[0])
    for number in range(100):
        now[0] = float(number)
        answers.add(now[0] - 10, number / 100, None if number % 2 else 0.1)
    assert answers.percentiles(49.5) == (pytest.approx(0.96), 0.1)
    assert answers.percentiles(99, ttft_since=49.5) == (pytest.approx(0.97), 0.1), "those that began before say nothing"
    assert answers.percentiles(99, tpot_since=80) == (pytest.approx(0.94), None), "too few began since"
    assert answers.percentiles(LEAST_ANSWERS - 2.0) == (None, None), "too few"


async def test_what_answers_have_seen_of_a_smaller_pool_says_nothing_of_this_one() -> None:
    """Or a pool that has grown for an SLO would be judged by answers that began before, and be thought to help nobody."""
    world = World()
    world.join("prefill", "p")
    world.report(world.join("decode", "d", **DECODE), kv_blocks_total=100)
    loads, answers = world.dispatcher.loads, world.dispatcher._accounting.answers
    assert loads.read(WINDOW_S).tpot_s is None
    before = time.monotonic()
    for _ in range(LEAST_ANSWERS):
        answers.add(before, 1.0, 0.2)
    assert (loads.read(WINDOW_S).ttft_s, loads.read(WINDOW_S).tpot_s) == (1.0, 0.2)
    world.report(world.join("decode", "e", **DECODE), kv_blocks_total=100)
    assert (loads.read(WINDOW_S).ttft_s, loads.read(WINDOW_S).tpot_s) == (1.0, None), "prefill has not grown"
    for _ in range(LEAST_ANSWERS):
        answers.add(time.monotonic(), 1.0, 0.1)
    assert loads.read(WINDOW_S).tpot_s == 0.1
