"""The cluster answers as one process without transfer does: token for token, in float32, and its KV really moves.

SERVAL_REAL_PROMPTS says how many prompts the real model gets.
"""

import asyncio
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster_clients import Answer, Ask, grpc_client
from cluster_harness import ClusterSpec, RunningCluster
from cluster_moves import BLOCK, Moves, blocks_of, kv_bytes
from cluster_reference import Reference
from cluster_shared import Clusters
from tokenizers import Tokenizer

from protocol.sampling import SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONGEST = 3000
AT_ONCE = 16
REAL_PROMPTS = int(os.environ.get("SERVAL_REAL_PROMPTS", "12"))


def lengths(count: int, seed: int, longest: int = LONGEST) -> list[int]:
    """Prompt lengths from 1 to `longest`: both ends, the borders of blocks, the rest spread over the orders of magnitude."""
    special = [1, longest, BLOCK - 1, BLOCK, BLOCK + 1, 8 * BLOCK]
    drawn = random.Random(seed)
    return special + [round(math.exp(drawn.uniform(0, math.log(longest)))) for _ in range(count - len(special))]


def tiny_asks(count: int, seed: int, max_tokens: int = 12) -> list[Ask]:
    """None ends early: one that ended with its first token would need no KV at the decode worker."""
    drawn = random.Random(f"many {seed}")
    prompts = [[drawn.randrange(256) for _ in range(length)] for length in lengths(count, seed)]
    return [Ask.greedy(prompt, max_tokens, ignore_eos=True) for prompt in prompts]


async def ask_in_waves(cluster: RunningCluster, asks: Sequence[Ask]) -> list[Answer]:
    """At most AT_ONCE open at a time."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with grpc_client(cluster) as client:

        async def one(ask: Ask) -> Answer:
            async with gate:
                return await client.ask(ask)

        return list(await asyncio.gather(*(one(ask) for ask in asks)))


def assert_all_moved(cluster: RunningCluster, moves: Moves, asks: list[Ask], blocks: int | None = None) -> None:
    """Every prompt's KV landed and was verified, to the block; none was computed at the decode worker; one outcome each."""
    expected = kv_bytes(cluster.spec.model, blocks_of(asks) if blocks is None else blocks)
    assert moves.of("decode", "bytes") == moves.of("prefill", "bytes") == expected
    assert moves.of("decode", "prefilled") == 0
    assert moves.of("decode", "mismatches") == 0
    assert moves.of("router", "outcomes") == len(asks)


async def test_prompts_of_a_real_model(clusters: Clusters, embedded_spec: ClusterSpec) -> None:
    """The cluster guesses by n-grams, the one process does not guess at all."""
    cluster = clusters.get(embedded_spec)
    kinds = [SamplingParams(temperature=0.0, max_tokens=8), SamplingParams(temperature=0.6, seed=9, max_tokens=8, logprobs=0)]
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    tokens = Tokenizer.from_file(str(embedded_spec.model / "tokenizer.json")).encode(text).ids * 2
    drawn = random.Random(1)
    asks = []
    for length in lengths(REAL_PROMPTS, seed=4, longest=500):  # one thread computes some 200 tokens per second
        # Each begins with a token of its own: no prompt finds another's beginning in a cache.
        begin = drawn.randrange(len(tokens) - length)
        text_tokens = tokens[begin : begin + length - 1]
        if len(asks) % 3 == 0:  # it begins anew, and is likely to go on as before: guesses of n-grams hold
            text_tokens[2 * length // 3 :] = text_tokens[: len(text_tokens) - 2 * length // 3]
        asks.append(Ask((1000 + len(asks), *text_tokens), kinds[len(asks) % 2]))
    reference = await asyncio.to_thread(Reference, embedded_spec.model, kv_memory_bytes=512 << 20, speculation="off")

    async with Moves(cluster) as moves:
        # At the same time: there is a core for it.
        expected, answers = await asyncio.gather(asyncio.to_thread(reference.answers, asks), ask_in_waves(cluster, asks))

    assert reference.assert_same(asks, answers, expected) <= 2, "ties are rare; so many mean that something is wrong"
    assert_all_moved(cluster, moves, asks)
    assert moves.of("decode", "drafted") >= moves.of("decode", "accepted") > 0


TOPOLOGIES = ["1P1D-chunks-of-whole-blocks", "1P2D-chunks-across-blocks"]


@pytest.fixture(params=[*TOPOLOGIES, pytest.param("2P1D-chunks-across-blocks", marks=pytest.mark.long)])
def topology(request: pytest.FixtureRequest, tiny_spec: ClusterSpec) -> ClusterSpec:
    fixtures = {"1P1D": "tiny_spec", "2P1D": "two_prefill_spec", "1P2D": "two_decode_spec"}
    spec: ClusterSpec = request.getfixturevalue(fixtures[request.param.partition("-")[0]])
    return spec


async def test_fifty_prompts(clusters: Clusters, topology: ClusterSpec, tiny_reference: Reference) -> None:
    cluster = clusters.get(topology)
    asks = tiny_asks(50, seed=topology.prefill + 2 * topology.decode)

    async with Moves(cluster) as moves:
        expected, answers = await asyncio.gather(asyncio.to_thread(tiny_reference.answers, asks), ask_in_waves(cluster, asks))

    assert tiny_reference.assert_same(asks, answers, expected) <= 2
    assert_all_moved(cluster, moves, asks)
    for worker in await cluster.workers():
        assert moves.of(worker.name, "bytes") > 0, f"{worker.name} had no part in it"


async def test_prompts_around_whole_chunks(clusters: Clusters, topology: ClusterSpec, tiny_reference: Reference) -> None:
    cluster = clusters.get(topology)
    chunk = dict(topology.settings)["engine.max_batch_tokens"]
    drawn = random.Random(chunk)
    sizes = [chunk - 1, chunk, chunk + 1, 2 * chunk, 4 * chunk, 4 * chunk + 1]
    asks = [Ask.greedy([drawn.randrange(256) for _ in range(size)], 8, ignore_eos=True) for size in sizes]

    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = [await client.ask(ask) for ask in asks]  # one at a time: each has its chunks to itself

    tiny_reference.assert_same(asks, answers)
    assert_all_moved(cluster, moves, asks)


class TestPrefixCache:
    """A prompt whose beginning is known to one side or to both."""

    @staticmethod
    def asks(seed: int) -> tuple[Ask, Ask]:
        """Two prompts with 40 whole blocks in common; the second goes on for 100 tokens."""
        drawn = random.Random(f"shared {seed}")
        shared = [drawn.randrange(256) for _ in range(40 * BLOCK)]
        return (
            Ask.greedy([*shared, 1], 12, ignore_eos=True),
            Ask.greedy([*shared, *(drawn.randrange(256) for _ in range(100))], 12, ignore_eos=True),
        )

    async def test_known_to_both(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        cluster = clusters.get(tiny_spec)
        first, second = self.asks(seed=1)
        async with Moves(cluster), grpc_client(cluster) as client:
            await client.ask(first)

        async with Moves(cluster) as moves, grpc_client(cluster) as client:
            answer = await client.ask(second)

        tiny_reference.assert_same([second], [answer])
        assert answer.cached_tokens == moves.of("prefill", "cached") == moves.of("decode", "cached") == 40 * BLOCK
        assert_all_moved(cluster, moves, [second], blocks=blocks_of([second]) - 40)

    async def test_the_same_prompt_again(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        """All but the last token is known; only the last block moves."""
        cluster = clusters.get(tiny_spec)
        _, ask = self.asks(seed=2)
        async with grpc_client(cluster) as client:
            answers = [await client.ask(ask)]
            async with Moves(cluster) as moves:
                answers.append(await client.ask(ask))

        tiny_reference.assert_same([ask, ask], answers)
        known = (len(ask.prompt) - 1) // BLOCK
        assert_all_moved(cluster, moves, [ask], blocks=blocks_of([ask]) - known)

    async def test_known_to_prefill_only(
        self, clusters: Clusters, two_decode_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """Round robin sends the second prompt to the decode worker that has not seen the first: everything moves."""
        cluster = clusters.get(two_decode_spec)
        first, second = self.asks(seed=3)
        async with Moves(cluster) as moves, grpc_client(cluster) as client:
            answers = [await client.ask(first), await client.ask(second)]

        tiny_reference.assert_same([first, second], answers)
        assert moves.of("prefill", "cached") == 40 * BLOCK
        assert moves.of("decode", "cached") == 0
        assert_all_moved(cluster, moves, [first, second])

    async def test_known_to_decode_only(
        self, clusters: Clusters, two_prefill_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        """The other prefill worker computes everything and sends what decode lacks."""
        cluster = clusters.get(two_prefill_spec)
        first, second = self.asks(seed=4)
        async with Moves(cluster) as moves, grpc_client(cluster) as client:
            answers = [await client.ask(first), await client.ask(second)]

        tiny_reference.assert_same([first, second], answers)
        assert moves.of("prefill", "cached") == 0
        assert moves.of("decode", "cached") == 40 * BLOCK
        assert_all_moved(cluster, moves, [first, second], blocks=blocks_of([first, second]) - 40)

    async def test_sixteen_at_once_share_a_beginning(
        self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference
    ) -> None:
        cluster = clusters.get(tiny_spec)
        drawn = random.Random(5)
        shared = [drawn.randrange(256) for _ in range(20 * BLOCK)]
        asks = [Ask.greedy([*shared, *(drawn.randrange(256) for _ in range(40))], 12, ignore_eos=True) for _ in range(AT_ONCE)]
        async with Moves(cluster), grpc_client(cluster) as client:
            await client.ask(asks[0])

        async with Moves(cluster) as moves, grpc_client(cluster) as client:
            answers = await client.ask_all(asks[1:])

        tiny_reference.assert_same(asks[1:], answers)
        assert moves.of("prefill", "cached") == moves.of("decode", "cached") == 20 * BLOCK * (AT_ONCE - 1)
        assert_all_moved(cluster, moves, asks[1:], blocks=blocks_of(asks[1:]) - 20 * (AT_ONCE - 1))


async def test_one_token_answers(clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
    """The first token is the last: prefill alone answers, and the decode worker gives everything back at once."""
    cluster = clusters.get(tiny_spec)
    asks = [Ask.greedy(ask.prompt, 1) for ask in tiny_asks(12, seed=6)]
    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    tiny_reference.assert_same(asks, answers)
    assert moves.of("router", "outcomes") == len(asks)


async def test_whole_prompts_unverified(clusters: Clusters, slow_transfer_spec: ClusterSpec, tiny_reference: Reference) -> None:
    """The baseline of benchmarks (nothing leaves before the end of compute), without digests."""
    cluster = clusters.get(slow_transfer_spec)
    asks = tiny_asks(12, seed=7)
    async with Moves(cluster) as moves:
        answers = await ask_in_waves(cluster, asks)

    tiny_reference.assert_same(asks, answers)
    assert_all_moved(cluster, moves, asks)


async def test_random_answers_by_seed(clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
    """What is drawn hangs on seed and position alone: not on the process that draws, nor on what else it computes."""
    cluster = clusters.get(tiny_spec)
    kinds = [
        SamplingParams(temperature=1.0, seed=11, max_tokens=24, logprobs=1),
        SamplingParams(temperature=0.7, top_p=0.8, seed=12, max_tokens=24, ignore_eos=True, logprobs=0),
        SamplingParams(temperature=1.3, top_k=7, min_p=0.05, seed=13, max_tokens=24, logprobs=0),
        SamplingParams(temperature=0.9, presence_penalty=0.8, frequency_penalty=0.4, seed=14, max_tokens=24, logprobs=0),
        SamplingParams(temperature=0.0, repetition_penalty=1.4, max_tokens=24, min_tokens=20, logprobs=0),
        SamplingParams(temperature=1.0, seed=15, max_tokens=24, logit_bias={65: 8.0}, stop_token_ids=(66,), logprobs=0),
    ]
    drawn = random.Random(8)
    prompts = [tuple(drawn.randrange(256) for _ in range(length)) for length in (5, 333)]
    pairs = [(prompt, params) for prompt in prompts for params in kinds]
    asks = [Ask((index, *prompt), params) for index, (prompt, params) in enumerate(pairs)]

    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    expected = tiny_reference.answers(asks)
    tiny_reference.assert_same(asks, answers, expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.logprobs == pytest.approx([token.logprob for token in wanted.logprobs], abs=1e-3)
    assert_all_moved(cluster, moves, asks)
