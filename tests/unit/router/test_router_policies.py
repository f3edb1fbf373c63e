"""Policies, the filter, and membership."""

import pytest

from protocol import cluster_pb2
from protocol.errors import ConfigError
from router.placement.placer import Placer
from router.placement.policies import Ask, LeastLoaded, Policy, RoundRobin, eligible, policy_by_name
from router.placement.prefix_index import PrefixIndex
from router.workers import Membership, RefusedWorker, Worker
from telemetry.metrics import Metrics

ASK = Ask(prompt_tokens=50, total_tokens=100)


def worker(name: str, **more: int) -> Worker:
    hello = cluster_pb2.Hello(peer=cluster_pb2.Peer(name=name, incarnation=hash(name) & 0xFFFF | 1), **more)  # type: ignore[arg-type]
    return Worker(hello, joined_at=0, heard_at=0, progressed_at=0)


def choose(policy: Policy, ask: Ask, pool: list[Worker]) -> Worker | None:
    placement = Placer(policy, PrefixIndex(1024), 5.0).place(ask, pool, [])
    return placement.decode if placement is not None else None


async def test_round_robin_takes_every_worker_in_turn() -> None:
    pool = [worker(name) for name in "abc"]
    picked = []
    for count in range(1, 7):
        chosen = choose(RoundRobin(), Ask(50, 100, session="one and the same"), pool)
        assert chosen is not None
        chosen.last_pick = count
        picked.append(chosen.name)
    assert picked == ["a", "b", "c"] * 2


async def test_least_loaded_counts_its_own_at_once_and_others_by_their_last_report() -> None:
    busy, idle = worker("busy"), worker("idle")
    busy.in_flight = 1
    assert choose(LeastLoaded(), ASK, [busy, idle]) is idle
    idle.take_report(cluster_pb2.LoadReport(running=2, waiting=1), now=1.0)  # three that another router sent
    assert choose(LeastLoaded(), ASK, [busy, idle]) is busy
    busy.take_report(cluster_pb2.LoadReport(running=1), now=1.0)  # that is this router's own: not counted twice
    assert busy.load_elsewhere == 0
    assert choose(LeastLoaded(), ASK, [busy, idle]) is busy


async def test_least_loaded_prefers_fewer_prompt_tokens_then_an_emptier_pool() -> None:
    one, other = worker("one"), worker("other")
    one.in_flight_tokens = 10
    assert choose(LeastLoaded(), ASK, [one, other]) is other
    one.in_flight_tokens = 0
    one.load.kv_blocks_total = other.load.kv_blocks_total = 10
    one.load.kv_blocks_used = 5
    assert choose(LeastLoaded(), ASK, [one, other]) is other


async def test_equals_are_picked_in_turn() -> None:
    one, other = worker("one"), worker("other")
    one.last_pick = 5
    assert choose(LeastLoaded(), ASK, [one, other]) is other


async def test_the_filter_leaves_workers_that_can_take_it() -> None:
    fits, short, small, draining, avoided = (
        worker("fits", max_model_len=100), worker("short", max_model_len=99), worker("small", kv_blocks=6, block_size=16),
        worker("draining"), worker("avoided"),
    )  # fmt: skip
    draining.is_draining = True
    ask = Ask(prompt_tokens=50, total_tokens=100, avoided=frozenset([avoided.incarnation]))
    assert eligible(ask, [fits, short, small, draining, avoided]) == [fits]
    assert choose(LeastLoaded(), ask, [short, small]) is None


def test_an_unknown_policy_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"fastest.*least_loaded, prefix_aware, round_robin"):
        policy_by_name("fastest")


async def test_membership_refuses_what_it_cannot_place() -> None:
    members = Membership(cluster_pb2.Peer(), "m", Metrics("router", "r"))
    for hello, says in (
        (cluster_pb2.Hello(model="m", role=cluster_pb2.ROLE_ROUTER), "role"),
        (cluster_pb2.Hello(model="m", role=cluster_pb2.ROLE_DECODE), "name and incarnation"),
    ):
        with pytest.raises(RefusedWorker, match=says):
            members.join(hello, now=0.0)


async def test_a_worker_alone_may_come_back_with_another_layout() -> None:
    members = Membership(cluster_pb2.Peer(), "m", Metrics("router", "r"))

    def hello(incarnation: int, layout: str) -> cluster_pb2.Hello:
        peer = cluster_pb2.Peer(name="d", incarnation=incarnation)
        return cluster_pb2.Hello(role=cluster_pb2.ROLE_DECODE, model="m", layout_fingerprint=layout, peer=peer)

    old = members.join(hello(1, "a"), now=0.0)
    new = members.join(hello(2, "b"), now=0.0)
    assert members.all == [new]
    assert old.end_reason.done()


async def test_a_worker_that_makes_steps_or_has_no_work_is_not_overdue() -> None:
    members = Membership(cluster_pb2.Peer(), "m", Metrics("router", "r"))
    peer = cluster_pb2.Peer(name="d", incarnation=1)
    one = members.join(cluster_pb2.Hello(role=cluster_pb2.ROLE_DECODE, model="m", peer=peer), now=0.0)
    one.heard_at = 100.0
    one.take_report(cluster_pb2.LoadReport(running=0, steps=5), now=90.0)
    assert members.overdue(100.0, silence_s=5, stall_s=20) == []
    one.take_report(cluster_pb2.LoadReport(running=1, steps=6), now=95.0)
    one.take_report(cluster_pb2.LoadReport(running=1, steps=6), now=120.0)
    assert [who for who, *_ in members.overdue(100.0, silence_s=5, stall_s=20)] == []
    assert [who for who, *_ in members.overdue(116.0, silence_s=50, stall_s=20)] == [one]
