"""LongCat-Flash served with prefill and decode apart answers as one process does: its latents move, and with its MTP head on, that
head's KV and the first guess too."""

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
from tests.agreeing_longcat import write_agreeing_longcat

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 100, 333, 700)
"""Below and above both the chunk and the length from which prefill expands the latents."""

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, seed=5, max_tokens=16, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def plain_spec(tiny_spec: ClusterSpec, tmp_path_factory: pytest.TempPathFactory) -> ClusterSpec:
    """Nobody guesses."""
    model = write_tiny_longcat(tmp_path_factory.mktemp("models") / "tiny-longcat")
    return dataclasses.replace(tiny_spec, model=model).with_settings(engine__speculation="off")


@pytest.fixture(scope="module")
def drafting_spec(tiny_spec: ClusterSpec, tmp_path_factory: pytest.TempPathFactory) -> ClusterSpec:
    """The checkpoint's head guesses, and is right more often than not."""
    model = write_agreeing_longcat(tmp_path_factory.mktemp("models") / "agreeing-longcat")
    return dataclasses.replace(tiny_spec, model=model).with_settings(engine__speculation="mtp")


@pytest.fixture(scope="module")
def plain_reference(plain_spec: ClusterSpec) -> Reference:
    return Reference(plain_spec.model, speculation="off")


@pytest.fixture(scope="module")
def drafting_reference(drafting_spec: ClusterSpec) -> Reference:
    """The same model without a head."""
    return Reference(drafting_spec.model, speculation="off")


def asks_of(params: SamplingParams, seed: int) -> list[Ask]:
    drawn = random.Random(f"longcat {seed} {params.seed}")
    return [Ask(tuple(drawn.randrange(4, 260) for _ in range(length)), params) for length in LENGTHS]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_same_answer_as_one_process(
    clusters: Clusters, plain_spec: ClusterSpec, plain_reference: Reference, params: SamplingParams
) -> None:
    cluster, asks = clusters.get(plain_spec), asks_of(params, seed=1)
    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    assert plain_reference.assert_same(asks, answers) <= 1
    assert moves.of("decode", "bytes") == moves.of("prefill", "bytes") == kv_bytes(plain_spec.model, blocks_of(asks))
    assert moves.of("decode", "prefilled") == moves.of("decode", "mismatches") == moves.of("decode", "drafted") == 0
    assert moves.of("router", "outcomes") == len(asks)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_same_answer_with_the_head_drafting(
    clusters: Clusters, drafting_spec: ClusterSpec, drafting_reference: Reference, params: SamplingParams
) -> None:
    cluster, asks = clusters.get(drafting_spec), asks_of(params, seed=2)
    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    assert drafting_reference.assert_same(asks, answers) <= 1
    moved = kv_bytes(drafting_spec.model, blocks_of(asks), with_draft_head=True)
    assert moves.of("decode", "bytes") == moves.of("prefill", "bytes") == moved
    assert moves.of("decode", "prefilled") == moves.of("decode", "mismatches") == 0
    # How many guesses are computed hangs on what steps take on this machine; tests of the engine alone count them exactly.
    assert moves.of("decode", "drafted") >= moves.of("decode", "accepted") > 0
    assert moves.of("router", "outcomes") == len(asks)


async def test_the_first_decode_step_verifies_a_draft(
    clusters: Clusters, drafting_spec: ClusterSpec, drafting_reference: Reference
) -> None:
    """Of three tokens prefill draws the first. With the second comes one guess at most, of use only if it came along: a guess made
    after the second would be at the third, which is drawn anyway."""
    cluster = clusters.get(drafting_spec)
    asks = asks_of(dataclasses.replace(GREEDY, max_tokens=3), seed=3)
    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    assert drafting_reference.assert_same(asks, answers) <= 1
    assert 0 < moves.of("decode", "accepted") <= moves.of("decode", "drafted") <= len(asks)
    assert moves.of("decode", "prefilled") == 0
