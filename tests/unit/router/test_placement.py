"""The pair, decided by prediction: tables of clusters and of what is picked in them, and why."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from protocol import cluster_pb2
from router.placement.placer import Placement, Placer, Reason
from router.placement.policies import Ask, LeastLoaded, Policy, PrefixAware, RoundRobin
from router.placement.prefix_index import PrefixIndex
from router.workers import DECODE, PREFILL, Worker

BLOCK = 16
PROMPT = tuple(range(100, 164))
"""Hashes of a prompt's 64 blocks."""
ASK = Ask(prompt_tokens=64 * BLOCK, total_tokens=64 * BLOCK + 32, hashes=PROMPT)


@dataclass
class Cluster:
    """Workers p0, p1.. and d0, d1.., all with 1,000 tokens/s, 100 MB/s and 10 ms per step unless told otherwise."""

    prefill: int = 2
    decode: int = 1
    policy: Policy = field(default_factory=PrefixAware)
    now: float = 0.0
    workers: dict[str, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.placer = Placer(self.policy, PrefixIndex(10_000), 5.0, lambda: self.now)
        for role, letter, count in ((PREFILL, "p", self.prefill), (DECODE, "d", self.decode)):
            for number in range(count):
                name = f"{letter}{number}"
                peer = cluster_pb2.Peer(name=name, incarnation=len(self.workers) + 1)
                hello = cluster_pb2.Hello(role=role, peer=peer, block_size=BLOCK, kv_token_bytes=1000, max_sequences=8)
                self.workers[name] = Worker(hello, joined_at=0, heard_at=0, progressed_at=0)
                self.report(name)

    def report(self, name: str, **load: Any) -> None:
        usual = {"prefill_tokens_per_s": 1000.0, "transfer_bytes_per_s": 1e8, "step_s": 0.01, "kv_blocks_total": 1000}
        self.workers[name].take_report(cluster_pb2.LoadReport(**{**usual, **load}), now=self.now)

    def cache(self, name: str, hashes: Sequence[int]) -> None:
        self.placer.on_cache_change(self.workers[name], cluster_pb2.CacheChange(stored=hashes))

    def place(self, ask: Ask = ASK) -> Placement:
        pools: dict[int, list[Worker]] = {DECODE: [], PREFILL: []}
        for worker in self.workers.values():
            pools[worker.hello.role].append(worker)
        placement = self.placer.place(ask, pools[DECODE], pools[PREFILL])
        assert placement is not None
        return placement

    def send(self, ask: Ask = ASK) -> Placement:
        """Places and counts as the dispatcher does."""
        placement = self.place(ask)
        self.placer.placed(placement, ask)
        for worker in (placement.decode, placement.prefill):
            if worker is not None:
                worker.in_flight += 1
                worker.last_pick = max(other.last_pick for other in self.workers.values()) + 1
        return placement


@pytest.fixture(autouse=True)
async def loop() -> asyncio.AbstractEventLoop:
    """A Worker holds a future."""
    return asyncio.get_running_loop()


def prefill_of(placement: Placement) -> tuple[str | None, Reason]:
    return placement.prefill.name if placement.prefill else None, placement.prefill_reason


def decode_of(placement: Placement) -> tuple[str, Reason]:
    return placement.decode.name, placement.reason


Setup = list[tuple[str, str, Any]]


def prepare(cluster: Cluster, setup: Setup) -> None:
    for name, what, value in setup:
        if what == "cache":
            cluster.cache(name, PROMPT[:value])
        elif what == "flight":
            cluster.workers[name].in_flight = value
        elif what == "draining":
            cluster.workers[name].is_draining = value
        elif what == "others":  # tokens of prompts that another router sent
            cluster.report(name, queued_tokens=value, waiting=1)
        elif what == "fast_with_others":
            cluster.report(name, queued_tokens=value, waiting=1, prefill_tokens_per_s=3000.0)
        else:
            cluster.report(name, **{what: value})


@pytest.mark.parametrize(
    ("setup", "picked"),
    [
        ([], ("p0", Reason.TURN)),
        ([("p1", "cache", 8)], ("p1", Reason.PREFIX)),
        ([("p0", "cache", 8), ("p1", "cache", 32)], ("p1", Reason.PREFIX)),
        # The longer queue outweighs the cache, or does not.
        ([("p1", "cache", 32), ("p1", "others", 400)], ("p1", Reason.PREFIX)),
        ([("p1", "cache", 32), ("p1", "others", 700)], ("p0", Reason.LOAD)),
        ([("p0", "others", 300)], ("p1", Reason.LOAD)),
        ([("p1", "prefill_tokens_per_s", 3000.0)], ("p1", Reason.LOAD)),
        ([("p1", "fast_with_others", 2500)], ("p0", Reason.LOAD)),
        # One that has measured nothing is as fast as its neighbours.
        ([("p0", "prefill_tokens_per_s", 0.0), ("p1", "others", 100)], ("p0", Reason.LOAD)),
        ([("p1", "draining", True)], ("p0", Reason.ONLY_ONE)),
        ([("p0", "draining", True), ("p1", "draining", True)], (None, Reason.NONE)),
        # So short a rest is computed at once where it is needed.
        ([("d0", "local_prefill_max_tokens", 2000)], (None, Reason.LOCAL)),
        ([("d0", "local_prefill_max_tokens", 1000)], ("p0", Reason.TURN)),
        ([("d0", "local_prefill_max_tokens", 1000), ("d0", "cache", 8)], (None, Reason.LOCAL)),
    ],
)
async def test_prefill(setup: Setup, picked: tuple[str | None, Reason]) -> None:
    cluster = Cluster()
    prepare(cluster, setup)
    assert prefill_of(cluster.place()) == picked


@pytest.mark.parametrize(
    ("setup", "picked"),
    [
        ([], ("d0", Reason.TURN)),
        ([("d1", "step_s", 0.005), ("d1", "running", 1)], ("d0", Reason.LOAD)),  # faster, but another router has one there
        ([("d0", "flight", 1)], ("d1", Reason.LOAD)),
        (
            [("d1", "cache", 60), ("d1", "transfer_bytes_per_s", 1e6), ("d0", "transfer_bytes_per_s", 1e6)],
            ("d1", Reason.PREFIX),
        ),
        # What moves in no time is not worth a fuller batch.
        ([("d1", "cache", 60), ("d1", "flight", 4)], ("d0", Reason.LOAD)),
        # Full: no blocks, a line of others, no place in the batch.
        ([("d0", "kv_blocks_used", 990), ("d1", "flight", 1)], ("d1", Reason.CAPACITY)),
        ([("d0", "waiting_for_blocks", 1), ("d1", "flight", 1)], ("d1", Reason.CAPACITY)),
        ([("d0", "flight", 8), ("d1", "flight", 7)], ("d1", Reason.LOAD)),
        ([("d0", "kv_blocks_used", 1000), ("d1", "kv_blocks_used", 1000)], ("d0", Reason.TURN)),
        # Its own short rest beats the way over a prefill worker with a queue.
        (
            [("p0", "others", 5000), ("p1", "others", 5000), ("d1", "local_prefill_max_tokens", 2000)],
            ("d1", Reason.LOAD),
        ),
    ],
)
async def test_decode(setup: Setup, picked: tuple[str, Reason]) -> None:
    cluster = Cluster(decode=2)
    prepare(cluster, setup)
    assert decode_of(cluster.place()) == picked


@pytest.mark.parametrize(
    ("slo_itl_s", "picked"), [(None, ("d1", Reason.PREFIX)), (0.02, ("d0", Reason.SLO)), (0.001, ("d1", Reason.PREFIX))]
)
async def test_who_meets_the_objective_goes_before_who_is_faster(slo_itl_s: float | None, picked: tuple[str, Reason]) -> None:
    cluster = Cluster(decode=2, policy=PrefixAware(slo_itl_s=slo_itl_s))
    slow_link = {"transfer_bytes_per_s": 1e5}  # ten seconds for the whole prompt
    for _ in range(20):
        cluster.report("d1", running=4, step_s=0.04, **slow_link)
    cluster.report("d0", running=1, **slow_link)
    cluster.report("d0", **slow_link)
    cluster.cache("d1", PROMPT)
    assert decode_of(cluster.place()) == picked


async def test_a_session_decides_among_equals_only_and_every_router_alike() -> None:
    picked = set()
    for session in map(str, range(20)):
        ask = Ask(ASK.prompt_tokens, ASK.total_tokens, session=session)
        first, second = Cluster(decode=3, prefill=1), Cluster(decode=3, prefill=1)
        second.workers["d0"].last_pick = 7
        name, reason = decode_of(first.place(ask))
        assert (name, reason) == decode_of(second.place(ask)) and reason is Reason.SESSION
        first.workers[name].in_flight = 6
        assert decode_of(first.place(ask)) != (name, reason)
        picked.add(name)
    assert picked == {"d0", "d1", "d2"}


async def test_another_answer_to_the_same_prompt_goes_where_the_first_is() -> None:
    cluster = Cluster(decode=2)
    cluster.workers["d1"].in_flight = 5
    ask = Ask(ASK.prompt_tokens, ASK.total_tokens, PROMPT, preferred=cluster.workers["d1"].incarnation)
    assert decode_of(cluster.place(ask)) == ("d1", Reason.SIBLING)
    cluster.workers["d1"].is_draining = True
    assert decode_of(cluster.place(ask)) == ("d0", Reason.ONLY_ONE)


async def test_a_burst_with_one_system_prompt_goes_to_one_worker_until_its_queue_outweighs_it() -> None:
    cluster = Cluster(prefill=4)
    picks = []
    for user in range(24):  # 60 of 64 blocks are the system prompt; nothing of it was computed yet
        own = tuple(range(1000 * (user + 1), 1000 * (user + 1) + 4))
        picks.append(prefill_of(cluster.send(Ask(ASK.prompt_tokens, ASK.total_tokens, PROMPT[:60] + own))))
    # The first has 1,024 tokens to compute. To wait for it takes as long as to begin elsewhere, so all four get the system
    # prompt; from then on each user adds 64 tokens anywhere, and the load stays even.
    first = [name for name, _ in picks[:8]]
    assert set(first) == {"p0", "p1", "p2", "p3"}
    per_worker = [sum(name == f"p{number}" for name, _ in picks) for number in range(4)]
    assert min(per_worker) >= 4


async def test_a_popular_prefix_stays_where_it_is_while_the_queue_is_short_and_spills_when_it_is_long() -> None:
    cluster = Cluster(prefill=2)
    cluster.cache("p0", PROMPT[:60])
    picks = []
    for user in range(40):
        own = tuple(range(1000 * (user + 1), 1000 * (user + 1) + 4))
        picks.append(prefill_of(cluster.send(Ask(ASK.prompt_tokens, ASK.total_tokens, PROMPT[:60] + own)))[0])
    spill = picks.index("p1")
    assert 12 <= spill <= 17, "the prefix saves 960 tokens, each user queues 64"
    assert picks[spill + 1 :].count("p0") > 5, "both have it now"


async def test_what_was_computed_no_longer_counts_and_others_work_counts_by_the_last_report() -> None:
    cluster = Cluster(prefill=1)
    worker = cluster.workers["p0"]
    first = cluster.send()
    assert worker.queued_tokens == first.uncached_tokens == 1024
    cluster.report("p0", queued_tokens=1500, waiting=3)  # two are another router's
    assert worker.queued_tokens == 1024 + 1000
    second = cluster.send()  # expected to be cached by then, but for the last token
    assert second.uncached_tokens == 1
    cluster.placer.computed(first)
    assert worker.queued_tokens == 1 + 1000
    cluster.report("p0", queued_tokens=0)
    cluster.placer.computed(second)
    assert (worker.queued_tokens, worker.computing_tokens) == (0, 0)


async def test_a_local_prompt_counts_at_the_decode_worker_with_a_prefill_worker_standing_by() -> None:
    cluster = Cluster()
    cluster.report("d0", local_prefill_max_tokens=100)
    cluster.cache("d0", PROMPT[:60])
    placement = cluster.send()
    assert (placement.prefill, placement.standby) == (None, cluster.workers["p0"])
    assert (placement.computing.name, placement.uncached_tokens) == ("d0", 64)
    assert cluster.workers["d0"].computing_tokens == 64
    assert cluster.workers["p0"].computing_tokens == 0


async def test_the_prediction_of_a_fuller_batch_is_learned_from_reports() -> None:
    cluster = Cluster()
    worker = cluster.workers["d0"]
    for running in (1, 2, 4, 6, 3, 5) * 5:
        cluster.report("d0", running=running, step_s=0.010 + 0.002 * running)
    worker.load.running = 0
    worker.in_flight = 7
    assert worker.predicted_itl_s(usual_s=1.0) == pytest.approx(0.010 + 0.002 * 8, rel=0.05)
    cluster.report("d0", step_s=0.0)  # nothing lately: as its neighbours
    worker.load.running, worker.in_flight = 0, 0
    assert worker.predicted_itl_s(usual_s=0.03) == pytest.approx(0.03)


async def test_a_worker_that_left_is_not_expected_to_hold_anything() -> None:
    cluster = Cluster()
    cluster.cache("p1", PROMPT)
    assert prefill_of(cluster.place()) == ("p1", Reason.PREFIX)
    cluster.workers["p1"].end_stream("it was killed")
    cluster.placer.on_worker_lost(cluster.workers["p1"])
    cluster.cache("p1", PROMPT)  # was on its way
    assert prefill_of(cluster.place()) == ("p0", Reason.TURN)
    assert cluster.placer.index_entries == 0


async def test_a_prompt_is_expected_for_as_long_as_it_may_wait_and_a_little_longer() -> None:
    cluster = Cluster(prefill=1)
    cluster.report("p0", queued_tokens=20_000, waiting=1)
    first = cluster.send()
    assert first.ttft_s == pytest.approx(21.024)
    cluster.now = 40.0
    assert cluster.place().uncached_tokens == 1
    cluster.now = 48.0
    assert cluster.place().uncached_tokens == 1024


@pytest.mark.parametrize("policy", [PrefixAware(), RoundRobin(), LeastLoaded()])
async def test_an_explanation_names_every_candidate_under_any_policy(policy: Policy) -> None:
    cluster = Cluster(decode=2, policy=policy)
    cluster.cache("p1", PROMPT[:10])
    explanation = cluster.place().explanation
    assert explanation["policy"] == policy.name
    assert [one["worker"] for one in explanation["decode"]["candidates"]] == ["d0", "d1"]
    p0, p1 = explanation["prefill"]["candidates"]
    assert (p0["cached_tokens"], p1["cached_tokens"]) == (0, 160)
    assert p0["ttft_s"] == pytest.approx(1.024)
    assert p1["ttft_s"] == pytest.approx(0.864)


async def test_nobody_to_take_it() -> None:
    cluster = Cluster(decode=1)
    assert cluster.placer.place(ASK, [], list(cluster.workers.values())) is None


async def test_a_pair_that_fails_is_not_made_again_while_its_decode_worker_says_so() -> None:
    cluster = Cluster(prefill=2, decode=1)
    cluster.report("p1", queued_tokens=900, running=1)
    favourite = cluster.place().prefill
    assert favourite is cluster.workers["p0"]
    cluster.report("d0", avoided_prefill=[favourite.incarnation])
    assert cluster.place().prefill is cluster.workers["p1"], "slower, and it works"
    cluster.report("d0", avoided_prefill=[cluster.workers[name].incarnation for name in ("p0", "p1")])
    placement = cluster.place()
    assert (placement.prefill, placement.computing, placement.prefill_reason) == (None, cluster.workers["d0"], Reason.NONE)
    cluster.report("d0")
    assert cluster.place().prefill is favourite
