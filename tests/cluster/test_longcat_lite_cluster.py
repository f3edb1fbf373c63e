"""LongCat-Flash-Lite served with prefill and decode apart: the decode worker's first step embeds a token by those before it, which
came with the prompt and not with the KV. The workers' metrics say what its experts did."""

import dataclasses
import random

import pytest
from cluster_clients import Ask, grpc_client
from cluster_harness import ClusterSpec
from cluster_moves import BLOCK, Moves
from cluster_reference import Reference
from cluster_shared import Clusters

from engine.tiny_longcat import EOS_TOKEN_ID, LITE_CONFIG, write_tiny_longcat
from protocol.sampling import SamplingParams

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
LENGTHS = (2, BLOCK, BLOCK + 1, 333)


async def test_same_answer_as_one_process(
    clusters: Clusters, tiny_spec: ClusterSpec, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = write_tiny_longcat(tmp_path_factory.mktemp("models") / "tiny-lite", raw=LITE_CONFIG)
    cluster = clusters.get(dataclasses.replace(tiny_spec, model=model).with_settings(engine__speculation="off"))
    drawn = random.Random("lite")
    prompts = [[drawn.randrange(4, 260) for _ in range(length)] for length in LENGTHS]
    prompts[2][-2] = EOS_TOKEN_ID  # a text ends within the first n-grams of the answer
    asks = [Ask(tuple(prompt), GREEDY) for prompt in prompts]
    async with Moves(cluster) as moves, grpc_client(cluster) as client:
        answers = await client.ask_all(asks)

    assert Reference(model, speculation="off").assert_same(asks, answers) <= 1
    assert moves.of("decode", "prefilled") == moves.of("decode", "mismatches") == 0
    per_token = LITE_CONFIG["moe_topk"] * LITE_CONFIG["num_layers"]
    assert moves.of("prefill", "assignments") == sum(LENGTHS) * per_token
    assert moves.of("decode", "assignments") == len(asks) * (GREEDY.max_tokens - 1) * per_token
    assert 0 < moves.of("decode", "product_rows") < moves.of("decode", "assignments"), "zero experts enter no product"
