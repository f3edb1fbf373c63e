"""LongCat-Flash served with prefill and decode apart answers as one process does: the latents move, and nothing else is needed."""

import dataclasses
import random

import pytest
from cluster_clients import Ask, grpc_client
from cluster_harness import ClusterSpec
from cluster_moves import BLOCK, Moves, blocks_of, kv_bytes
from cluster_reference import Reference
from cluster_shared import Clusters

from engine.tiny_longcat import write_tiny_longcat
from protocol.sampling import SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 100, 333, 700)
"""Below and above both the chunk and the length from which prefill expands the latents."""


@pytest.fixture(scope="module")
def longcat_spec(tiny_spec: ClusterSpec, tmp_path_factory: pytest.TempPathFactory) -> ClusterSpec:
    return dataclasses.replace(tiny_spec, model=write_tiny_longcat(tmp_path_factory.mktemp("models") / "tiny-longcat"))


@pytest.fixture(scope="module")
def reference(longcat_spec: ClusterSpec) -> Reference:
    return Reference(longcat_spec.model)


def prompts(seed: int) -> list[list[int]]:
    drawn = random.Random(f"longcat {seed}")
    return [[drawn.randrange(4, 260) for _ in range(length)] for length in LENGTHS]


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
async def test_same_answer_as_one_process(
    clusters: Clusters, longcat_spec: ClusterSpec, reference: Reference, kind: str
) -> None:
    cluster = clusters.get(longcat_spec)
    if kind == "greedy":
        asks = [Ask.greedy(prompt, 12, ignore_eos=True) for prompt in prompts(1)]
    else:
        params = SamplingParams(temperature=0.9, top_p=0.95, seed=5, max_tokens=12, ignore_eos=True, logprobs=0)
        asks = [Ask(tuple(prompt), params) for prompt in prompts(2)]

    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    assert reference.assert_same(asks, answers) <= 1
    assert moves.of("decode", "bytes") == moves.of("prefill", "bytes") == kv_bytes(longcat_spec.model, blocks_of(asks))
    assert moves.of("decode", "prefilled") == moves.of("decode", "mismatches") == 0
    assert moves.of("router", "outcomes") == len(asks)
