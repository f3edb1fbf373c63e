"""The cluster answers as one process without transfer does: token for token, in float32, and its KV really moves."""

import asyncio
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster_clients import Answer, Ask, grpc_client
from cluster_harness import ClusterSpec, RunningCluster
from cluster_moves import BLOCK, Moves, blocks_of, kv_bytes
from cluster_reference import Reference
from conftest import Clusters
from tokenizers import Tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONGEST = 3000
AT_ONCE = 16


def lengths(count: int, seed: int, longest: int = LONGEST) -> list[int]:
    """Prompt lengths from 1 to LONGEST: both ends, the borders of blocks, the rest spread over the orders of magnitude."""
    special = [1, LONGEST, BLOCK - 1, BLOCK, BLOCK + 1, 8 * BLOCK]
    drawn = random.Random(seed)
    return special + [round(math.exp(drawn.uniform(0, math.log(longest)))) for _ in range(count - len(special))]


def tiny_asks(count: int, seed: int, max_tokens: int = 12) -> list[Ask]:
    drawn = random.Random(seed)
    return [Ask.greedy([drawn.randrange(256) for _ in range(length)], max_tokens) for length in lengths(count, seed)]


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


async def test_fifty_prompts_of_a_real_model(clusters: Clusters, embedded_spec: ClusterSpec) -> None:
    cluster = clusters.get(embedded_spec)
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    tokens = Tokenizer.from_file(str(embedded_spec.model / "tokenizer.json")).encode(text).ids * 2
    drawn = random.Random(1)
    asks = []
    for length in lengths(50, seed=4, longest=500):  # one thread computes some 200 tokens per second
        # Each begins with a token of its own: no prompt finds another's beginning in a cache.
        begin = drawn.randrange(len(tokens) - length)
        asks.append(Ask.greedy([1000 + len(asks), *tokens[begin : begin + length - 1]], max_tokens=8))
    reference = await asyncio.to_thread(Reference, embedded_spec.model, kv_memory_bytes=512 << 20)

    async with Moves(cluster) as moves:
        # At the same time: there is a core for it.
        expected, answers = await asyncio.gather(asyncio.to_thread(reference.answers, asks), ask_in_waves(cluster, asks))

    assert reference.assert_same(asks, answers, expected) <= 2, "ties are rare; so many mean that something is wrong"
    assert_all_moved(cluster, moves, asks)


TOPOLOGIES = pytest.mark.parametrize(
    ("prefill", "decode", "chunk"),
    [
        pytest.param(1, 1, 256, id="1P1D-chunks-of-whole-blocks"),
        pytest.param(2, 1, 100, id="2P1D-chunks-across-blocks"),
        pytest.param(1, 2, 37, id="1P2D-chunks-across-blocks"),
    ],
)


def topology(tiny_spec: ClusterSpec, prefill: int, decode: int, chunk: int) -> ClusterSpec:
    """Round robin: two requests in a row go to different workers."""
    if (prefill, decode) == (1, 1):
        return tiny_spec
    spec = ClusterSpec(tiny_spec.model, prefill, decode, tiny_spec.settings)
    return spec.with_settings(engine__max_batch_tokens=chunk, router__policy="round_robin")


@TOPOLOGIES
async def test_fifty_prompts(
    clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference, prefill: int, decode: int, chunk: int
) -> None:
    cluster = clusters.get(topology(tiny_spec, prefill, decode, chunk))
    asks = tiny_asks(50, seed=chunk)
    assert any(len(ask.prompt) % chunk for ask in asks)

    async with Moves(cluster) as moves:
        expected, answers = await asyncio.gather(asyncio.to_thread(tiny_reference.answers, asks), ask_in_waves(cluster, asks))

    assert tiny_reference.assert_same(asks, answers, expected) <= 2
    assert_all_moved(cluster, moves, asks)
    for worker in await cluster.workers():
        assert moves.of(worker.name, "bytes") > 0, f"{worker.name} had no part in it"


@TOPOLOGIES
async def test_prompts_that_fill_whole_chunks(
    clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference, prefill: int, decode: int, chunk: int
) -> None:
    cluster = clusters.get(topology(tiny_spec, prefill, decode, chunk))
    drawn = random.Random(chunk)
    sizes = [chunk - 1, chunk, chunk + 1, 2 * chunk, 4 * chunk, 4 * chunk + 1]
    asks = [Ask.greedy([drawn.randrange(256) for _ in range(size)], 8) for size in sizes]

    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = [await client.ask(ask) for ask in asks]  # one at a time: each has its chunks to itself

    tiny_reference.assert_same(asks, answers)
    assert_all_moved(cluster, moves, asks)


class TestPrefixCache:
    """A prompt whose beginning is known to one side or to both."""

    @staticmethod
    def asks(seed: int) -> tuple[Ask, Ask]:
        """Two prompts with 40 whole blocks in common; the second goes on for 100 tokens."""
        drawn = random.Random(seed)
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

    async def test_known_to_prefill_only(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        """Round robin sends the second prompt to the decode worker that has not seen the first: everything moves."""
        cluster = clusters.get(topology(tiny_spec, 1, 2, 37))
        first, second = self.asks(seed=3)
        async with Moves(cluster) as moves, grpc_client(cluster) as client:
            answers = [await client.ask(first), await client.ask(second)]

        tiny_reference.assert_same([first, second], answers)
        assert moves.of("prefill", "cached") == 40 * BLOCK
        assert moves.of("decode", "cached") == 0
        assert_all_moved(cluster, moves, [first, second])

    async def test_known_to_decode_only(self, clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
        """The other prefill worker computes everything and sends what decode lacks."""
        cluster = clusters.get(topology(tiny_spec, 2, 1, 100))
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
        asks = [Ask.greedy([*shared, *(drawn.randrange(256) for _ in range(40))], 12) for _ in range(AT_ONCE)]
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
