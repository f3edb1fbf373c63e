"""What workers computed is accounted for to the last report, whoever dies: told, lost, or still open."""

from typing import Any

import pytest
from dispatch_world import World

PRICE = {"gpu_hour_usd": 3600.0}
"""A dollar per second."""


def world_of(**config: Any) -> World:
    world = World(cost={"prefill": PRICE, "decode": PRICE}, **config)
    for role, name in (("prefill", "p"), ("decode", "a"), ("decode", "b")):
        world.report(world.join(role, name))
    return world


def billed(world: World, pool: str, reason: str) -> float:
    return world.metrics.value("serval_cost_dollars_total", pool=pool, reason=reason)


def busy(world: World, pool: str) -> float:
    return world.metrics.value("serval_pool_busy_seconds_total", pool=pool)


async def test_what_a_dead_worker_took_for_open_requests_is_lost() -> None:
    world = world_of()
    request = world.accept()
    task = world.task_of(request)
    world.say(task, 1, None, prefill_busy_s=2.0)
    assert request.decode is not None
    world.report(request.decode, busy_s=7.0, untold_busy_s=5.0)
    world.members.leave(request.decode, "its stream broke")
    assert (billed(world, "decode", "lost"), billed(world, "prefill", "lost")) == (5.0, 2.0)
    assert world.metrics.value("serval_cost_dollars_total", tenant="") == 5.0, "whose it was is not known"
    assert world.metrics.value("serval_cost_dollars_total", tenant="default") == 2.0, "of the prompt it is"
    assert busy(world, "decode") == 7.0, "the dead worker's counter is gone, and this one is not"


async def test_what_was_told_since_the_last_report_is_not_lost_as_well() -> None:
    world = world_of()
    first, second = world.accept(), world.accept()
    worker = first.decode
    assert worker is not None
    if second.decode is not worker:
        world.dispatcher.abandon(second)
    task = world.task_of(first)
    world.report(worker, busy_s=6.0, untold_busy_s=6.0)
    world.say(task, 6, "length", decode_busy_s=4.0, prefill_busy_s=1.0)
    world.members.leave(worker, "its stream broke")
    assert billed(world, "decode", "served") + billed(world, "decode", "lost") == 6.0 == busy(world, "decode")
    assert billed(world, "prefill", "served") == 1.0 and billed(world, "prefill", "lost") == 0.0


async def test_a_prompt_whose_worker_died_after_its_first_token_is_billed_once() -> None:
    world = world_of()
    request = world.accept()
    prefill = next(worker for worker in world.workers if worker.name == "p")
    assert request.prefill is prefill
    world.report(prefill, busy_s=3.0, untold_busy_s=3.0)
    task = world.task_of(request)
    world.say(task, 1, None)
    world.members.leave(prefill, "its stream broke")
    world.say(task, 5, "length", prefill_busy_s=3.1, decode_busy_s=1.0)
    assert billed(world, "prefill", "lost") == 3.0 and billed(world, "prefill", "served") == 0.0
    assert billed(world, "decode", "served") == 1.0


async def test_what_nobody_could_be_told_is_lost_once_and_a_stream_that_comes_back_goes_on() -> None:
    world = world_of()
    prefill = next(worker for worker in world.workers if worker.name == "p")
    world.report(prefill, busy_s=2.0, lost_busy_s=1.0)
    world.report(prefill, busy_s=4.0, lost_busy_s=1.5)
    world.members.leave(prefill, "its stream broke")
    again = world.members.join(prefill.hello, now=0.0)
    world.report(again, busy_s=5.0, lost_busy_s=1.5)
    assert billed(world, "prefill", "lost") == pytest.approx(1.5)
    assert busy(world, "prefill") == pytest.approx(5.0)


async def test_what_was_computed_before_this_router_came_is_not_its_business() -> None:
    world = World(cost={"decode": PRICE})
    worker = world.join("decode", "d")
    world.report(worker, busy_s=100.0, lost_busy_s=10.0)
    world.report(worker, busy_s=101.0, lost_busy_s=10.0)
    assert (busy(world, "decode"), billed(world, "decode", "lost")) == (1.0, 0.0)
