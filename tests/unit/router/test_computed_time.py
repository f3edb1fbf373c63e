"""What workers computed is accounted for to the last report, whoever dies: told, lost, or still open."""

import asyncio
import itertools
from collections import Counter
from typing import Any

import pytest
from dispatch_world import World
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import cluster_pb2
from router.computed_time import ComputedTime
from router.request import Request
from router.workers import Worker

PRICE = {"gpu_hour_usd": 3600.0}
"""A dollar per second."""
INCARNATIONS = itertools.count(1)


def world_of(**config: Any) -> World:
    world = World(cost={"prefill": PRICE, "decode": PRICE}, **config)
    for role, name in (("prefill", "p"), ("decode", "a"), ("decode", "b")):
        world.report(world.join(role, name))
    return world


def pair_of(world: World, request: Request) -> tuple[Worker, Worker]:
    assert request.prefill is not None and request.decode is not None
    return request.prefill, request.decode


def told(peer: Worker, seconds: float) -> cluster_pb2.BusyTime:
    return cluster_pb2.BusyTime(peer=peer.incarnation, busy_s=seconds)


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
    assert billed(world, "prefill", "lost") == 3.0 and billed(world, "decode", "served") == 1.0
    assert billed(world, "prefill", "served") == pytest.approx(0.1), "computed since its last report"
    assert busy(world, "prefill") == pytest.approx(3.1)


async def test_a_prompt_that_was_told_before_its_worker_died_is_served() -> None:
    """What that worker reported as told was not lost with it, however soon it died."""
    world = world_of()
    request = world.accept()
    prefill, decode = pair_of(world, request)
    task = world.task_of(request)
    world.say(task, 1, None, prefill_busy_s=3.0)
    world.report(prefill, busy_s=3.0, told_busy=[told(decode, 3.0)])
    world.members.leave(prefill, "its stream broke")
    world.say(task, 5, "length", prefill_busy_s=3.0, decode_busy_s=1.0)
    assert (billed(world, "prefill", "served"), billed(world, "prefill", "lost"), busy(world, "prefill")) == (3.0, 0.0, 3.0)


async def test_what_a_prefill_worker_told_a_decode_worker_that_died_is_lost() -> None:
    """The first token was on its way: no other word of it comes."""
    world = world_of()
    request = world.accept()
    prefill, decode = pair_of(world, request)
    world.report(prefill, busy_s=2.0, told_busy=[told(decode, 2.0)])
    assert billed(world, "prefill", "lost") == 0.0, "it may still come"
    world.members.leave(decode, "its stream broke")
    for _ in range(2):
        world.report(prefill, busy_s=2.5, told_busy=[told(decode, 2.5)])
    assert (billed(world, "prefill", "lost"), busy(world, "prefill")) == (2.5, 2.5), "once"


async def test_what_comes_too_late_for_an_answer_s_end_is_lost() -> None:
    """A prompt was computed by the decode worker after all, and the prefill worker said what it took when that was answered."""
    world = world_of()
    request = world.accept()
    prefill, decode = pair_of(world, request)
    world.say(world.task_of(request), 6, "length", decode_busy_s=1.0, prefilled_locally=True)
    world.report(prefill, busy_s=2.0, told_busy=[told(decode, 2.0)])
    for _ in range(2):
        world.report(decode, busy_s=1.0, told_busy=[told(prefill, 2.0)])
    world.members.leave(decode, "its stream broke")
    world.report(prefill, busy_s=2.0, told_busy=[told(decode, 2.0)])
    assert (billed(world, "prefill", "lost"), busy(world, "prefill")) == (2.0, 2.0), "once"


async def test_open_work_of_a_stream_that_broke_is_lost_once_whatever_becomes_of_it() -> None:
    world = world_of()
    request = world.accept()
    _, decode = pair_of(world, request)
    world.report(decode, busy_s=4.0, untold_busy_s=4.0)
    world.members.leave(decode, "its stream broke")
    again = world.members.join(decode.hello, now=0.0)
    world.report(again, busy_s=5.0, untold_busy_s=5.0)
    world.report(again, busy_s=5.0, lost_busy_s=5.0)
    assert (billed(world, "decode", "lost"), busy(world, "decode")) == (5.0, 5.0)


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


class Ledger:
    """A prefill and a decode worker as they are to the bill, with everything that may be under way between them and the router."""

    def __init__(self) -> None:
        self.lost_s = {"prefill": 0.0, "decode": 0.0}
        self.billed_s = dict(self.lost_s)
        self.time = ComputedTime(on_lost=self.on_lost)
        self.begin_prefill()
        self.begin_decode()

    def on_lost(self, pool: str, seconds: float) -> None:
        self.lost_s[pool] += seconds

    def begin_prefill(self) -> None:
        self.prefill = worker_of("prefill")
        self.busy_s = self.untold_s = self.gone_s = 0.0
        self.told_s: Counter[int] = Counter()
        self.report_prefill()

    def begin_decode(self) -> None:
        self.decode = worker_of("decode")
        self.known: list[tuple[Worker, float]] = []
        """What prefill workers told it, and it has told nobody."""
        self.stream: list[tuple[Worker, float]] = []
        """What it has told, of them and of itself, and the router has not heard."""
        self.passed_s: Counter[int] = Counter()
        self.own_busy_s = self.own_untold_s = self.own_gone_s = 0.0
        self.report_decode()

    # ---- prefill

    def compute(self) -> None:
        self.busy_s += 1.0
        self.untold_s += 1.0

    def tell(self) -> None:
        self.told_s[self.decode.incarnation] += self.untold_s
        self.known.append((self.prefill, self.untold_s))
        self.untold_s = 0.0

    def lose(self) -> None:
        """The prompt's asker has gone."""
        self.gone_s, self.untold_s = self.gone_s + self.untold_s, 0.0

    def report_prefill(self) -> None:
        load = cluster_pb2.LoadReport(busy_s=self.busy_s, untold_busy_s=self.untold_s, lost_busy_s=self.gone_s)
        load.told_busy.extend(cluster_pb2.BusyTime(peer=peer, busy_s=seconds) for peer, seconds in self.told_s.items())
        self.time.on_report(self.prefill, load)

    def kill_prefill(self) -> None:
        self.time.on_gone(self.prefill)
        self.begin_prefill()

    def break_prefill_s_stream(self) -> None:
        self.time.on_gone(self.prefill)
        self.report_prefill()

    # ---- decode

    def decode_computes(self) -> None:
        self.own_busy_s += 1.0
        self.own_untold_s += 1.0

    def an_answer_ends(self) -> None:
        self.stream.append((self.decode, self.own_untold_s))
        self.passed_s[self.decode.incarnation] += self.own_untold_s
        self.own_untold_s = 0.0

    def pass_on(self) -> None:
        if self.known:
            prefill, seconds = self.known.pop(0)
            self.stream.append((prefill, seconds))
            self.passed_s[prefill.incarnation] += seconds

    def come_late(self) -> None:
        """The request's end is out: only a report will say it."""
        if self.known:
            prefill, seconds = self.known.pop(0)
            self.passed_s[prefill.incarnation] += seconds

    def hear(self) -> None:
        if self.stream:
            worker, seconds = self.stream.pop(0)
            self.billed_s[worker.pool] += self.time.on_told(worker, self.decode, seconds)

    def report_decode(self) -> None:
        """What was said before on the stream has come."""
        while self.stream:
            self.hear()
        load = cluster_pb2.LoadReport(busy_s=self.own_busy_s, untold_busy_s=self.own_untold_s, lost_busy_s=self.own_gone_s)
        load.told_busy.extend(cluster_pb2.BusyTime(peer=peer, busy_s=seconds) for peer, seconds in self.passed_s.items())
        self.time.on_report(self.decode, load)

    def kill_decode(self) -> None:
        self.time.on_gone(self.decode)
        self.begin_decode()

    def give_up(self) -> None:
        self.own_gone_s, self.own_untold_s = self.own_gone_s + self.own_untold_s, 0.0
        while self.known:
            self.come_late()

    def break_and_give_up_at_once(self) -> None:
        self.time.on_gone(self.decode)
        self.stream.clear()
        self.give_up()
        self.report_decode()

    def break_and_give_up_later(self) -> None:
        self.time.on_gone(self.decode)
        self.stream.clear()
        self.report_decode()
        self.give_up()


PREFILL_EVENTS = ("compute", "tell", "lose", "report_prefill", "kill_prefill", "break_prefill_s_stream")
DECODE_EVENTS = ("decode_computes", "an_answer_ends", "pass_on", "come_late", "hear", "report_decode")
DECODE_EVENTS += ("kill_decode", "break_and_give_up_at_once", "break_and_give_up_later")
EVENTS = PREFILL_EVENTS + DECODE_EVENTS


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
@settings(max_examples=500, deadline=None)
@example(["compute", "report_prefill", "tell", "kill_decode", "kill_prefill"])
@example(["compute", "report_prefill", "tell", "kill_prefill", "compute", "tell", "pass_on", "pass_on", "hear", "hear"])
@example(["decode_computes", "an_answer_ends", "break_and_give_up_later", "decode_computes"])
@example(["compute", "tell", "pass_on", "break_and_give_up_at_once", "compute", "tell", "pass_on", "hear"])
def test_whatever_dies_whenever_bill_and_losses_are_what_was_computed(events: list[str]) -> None:
    async def run() -> None:
        ledger = Ledger()
        for event in events:
            getattr(ledger, event)()
        while ledger.known:
            ledger.pass_on()
        ledger.lose()
        ledger.an_answer_ends()
        ledger.report_decode()
        ledger.report_prefill()
        for pool in ("prefill", "decode"):
            computed_s = ledger.time.read().get(pool, 0.0)
            assert ledger.billed_s[pool] + ledger.lost_s[pool] == pytest.approx(computed_s), (pool, events)

    asyncio.run(run())


def worker_of(pool: str) -> Worker:
    role = cluster_pb2.ROLE_PREFILL if pool == "prefill" else cluster_pb2.ROLE_DECODE
    hello = cluster_pb2.Hello(role=role, peer=cluster_pb2.Peer(name=pool, incarnation=next(INCARNATIONS)))
    return Worker(hello, 0.0, 0.0, 0.0)
