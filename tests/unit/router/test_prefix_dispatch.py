"""The dispatcher with prefixes: who is busy with a prompt's beginning, what is counted, and what becomes of it."""

import pytest

from protocol import cluster_pb2
from protocol.block_hash import chained_hashes, short_hash
from protocol.ids import RequestId
from protocol.sampling import SamplingParams
from router.request import GenerateSpec, Request
from router.workers import Worker
from tests.unit.router.dispatch_world import World

SYSTEM = tuple(range(160))
"""Ten blocks."""


class PrefixWorld(World):
    """p0 has the system prompt; both prefill workers compute 1,000 tokens per second."""

    def __init__(self, policy: str) -> None:
        super().__init__(policy=policy)
        self.decode = self.join("decode", "d", block_size=16)
        self.prefill = [self.join("prefill", name, block_size=16) for name in ("p0", "p1")]
        for worker in self.prefill:
            self.report(worker, prefill_tokens_per_s=1000.0)
        hashes = [short_hash(block) for block in chained_hashes(SYSTEM, 16)]
        self.dispatcher.on_cache(self.prefill[0], cluster_pb2.CacheChange(reset=True, stored=hashes))

    def ask(self, user: int, rest: int = 32) -> Request:
        prompt = (*SYSTEM, *(200 + (user * 31 + position) % 90 for position in range(rest)))
        request = self.dispatcher.accept(RequestId(f"u{user}"), GenerateSpec(prompt, SamplingParams(max_tokens=2)))
        self.requests.append(request)
        return request

    def count_at(self, worker: Worker) -> int:
        return sum(request.prefill is worker for request in self.requests)


async def test_a_busy_worker_is_given_more_as_long_as_what_it_has_cached_saves_the_wait() -> None:
    world = PrefixWorld("prefix_aware")
    p0, p1 = world.prefill
    for user in range(3):
        world.ask(user)
    # Two prompts keep it busy; the third waits there all the same: 64 tokens before it, and 160 saved.
    assert (world.count_at(p0), world.count_at(p1)) == (3, 0)
    assert p0.computing_tokens == 3 * 32
    for user in range(3, 8):
        world.ask(user)
    assert world.count_at(p1) > 0, "a queue longer than what the cache saves"
    world.dispatcher.end_all("over")
    assert [worker.computing_tokens for worker in world.workers] == [0, 0, 0]


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded"])
async def test_policies_that_predict_nothing_spread_and_need_no_hashes(policy: str) -> None:
    world = PrefixWorld(policy)
    requests = [world.ask(user) for user in range(4)]
    assert [world.count_at(worker) for worker in world.prefill] == [2, 2]
    assert all(request.prompt_hashes is None for request in requests)


async def test_the_first_token_ends_the_computing_and_the_loss_of_a_worker_too() -> None:
    world = PrefixWorld("prefix_aware")
    p0 = world.prefill[0]
    first, _ = world.ask(0), world.ask(1)
    assert p0.computing_tokens == 64
    world.say(world.task_of(first), 1, None)
    assert p0.computing_tokens == 32
    world.members.leave(world.decode, "killed")
    assert p0.computing_tokens == 0
    world.dispatcher.end_all("over")


async def test_a_prompt_is_hashed_once_and_explained_for_whoever_asks() -> None:
    world = PrefixWorld("prefix_aware")
    request = world.ask(0)
    assert request.prompt_hashes is not None and len(request.prompt_hashes) == 12
    assert request.explanation["prefill"]["worker"] == "p0"
    assert request.explanation["prefill"]["reason"] == "prefix"
    value = world.metrics.value
    assert value("serval_placements_total", policy="prefix_aware", pool="prefill", reason="prefix") == 1
    assert value("serval_prefix_index_entries") == 10
    world.dispatcher.end_all("over")
