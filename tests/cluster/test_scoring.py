"""Log-likelihoods of prompts, as lm-eval asks for them: what a model says of its own answer is the same, drawn or read."""

from dataclasses import replace

import pytest
from cluster_clients import Ask, grpc_client
from cluster_harness import ClusterSpec, client
from cluster_shared import Clusters

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

ASKS = [Ask.greedy([index, *range(60, 60 + 40 * index)], 8, ignore_eos=True) for index in range(1, 5)]
NOISE = 1e-3
"""float32 sums in another order: one token at a time, or all of a prompt."""


async def test_an_answer_read_as_a_prompt_has_the_logprobs_it_was_drawn_with(
    clusters: Clusters, tiny_spec: ClusterSpec
) -> None:
    cluster = clusters.get(tiny_spec)
    async with grpc_client(cluster) as api, client() as http:
        drawn = await api.ask_all([replace(ask, params=replace(ask.params, logprobs=1)) for ask in ASKS])
        prompts = [[*ask.prompt, *answer.token_ids] for ask, answer in zip(ASKS, drawn, strict=True)]
        body = {"model": cluster.model, "prompt": prompts, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
        for max_tokens in (0, 1):  # a prompt alone, and as lm-eval asks for it
            response = await http.post(f"{cluster.url}/v1/completions", json={**body, "max_tokens": max_tokens})
            assert response.status_code == 200, response.text
            for choice, ask, answer in zip(response.json()["choices"], ASKS, drawn, strict=True):
                listed, begin = choice["logprobs"], len(ask.prompt)
                end = begin + len(answer.token_ids)
                assert len(listed["token_logprobs"]) == end + max_tokens
                assert listed["token_logprobs"][begin:end] == pytest.approx(answer.logprobs, abs=NOISE)
                for own, top in zip(listed["token_logprobs"][begin:end], listed["top_logprobs"][begin:end], strict=True):
                    assert own == pytest.approx(max(top.values()), abs=NOISE), "it was drawn greedily"
