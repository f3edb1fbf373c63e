"""A request on its whole way through both workers: grammars, prompt logprobs, answers that go on, shared prompts, busy time."""

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from pair_support import WAIT_S, Pair, params_of, random_prompt, running_pair
from transformers import AutoModelForCausalLM

from decode.flow import Flow
from engine.sequence import Sequence, SequenceUpdate
from engine.tiny import write_tiny_llama
from protocol import cluster_pb2
from tests.json_schemas import json_schemas

BLOCK_BYTES = 4 * 16 * 64 * 4
"""One KV block of the tiny model in all its layers: layers, tokens, values per token, bytes per value."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def pair(folder: Path) -> AsyncIterator[Pair]:
    """Both guess: tokens that a grammar forces, and what n-grams find."""
    async with running_pair(folder, engine={"speculation": "ngram"}, decode={"local_prefill_max_tokens": 0}) as running:
        yield running


def document_grammar(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})


async def test_documents_keep_to_their_schemas_from_the_first_token_on(pair: Pair) -> None:
    schemas = json_schemas(12, seed=3)
    asked = [
        pair.router.submit(
            random_prompt(30 + i, i),
            params_of(grammar=document_grammar(schema), max_tokens=1500, temperature=float(i % 2), seed=i),
        )
        for i, schema in enumerate(schemas)
    ]
    for schema, told in zip(schemas, asked, strict=True):
        assert (await told.until_ended()).outcome == "stop"
        Draft202012Validator(schema).validate(json.loads(bytes(told.tokens)))
    for metrics in (pair.prefill_metrics, pair.decode_metrics):
        assert metrics.value("serval_grammar_requests_total") == len(schemas)
    assert pair.decode_metrics.value("serval_spec_decode_num_accepted_tokens_total") > 0


async def test_a_grammar_that_the_first_token_fulfils_ends_the_answer(pair: Pair) -> None:
    told = pair.router.submit(random_prompt(40), params_of(grammar=LLMatcher.grammar_from_regex("[xyz]")))
    assert (await told.until_ended()).outcome == "stop"
    assert len(told.tokens) == 1


@pytest.mark.parametrize("prefill", ["prefill-0", None])
async def test_what_is_no_grammar_is_invalid(pair: Pair, prefill: str | None) -> None:
    told = pair.router.submit(random_prompt(40), params_of(grammar="start: nowhere"), prefill=prefill)
    ended = await told.until_ended()
    assert ended.outcome == "invalid"
    assert "grammar" in ended.message


async def test_a_lease_that_ends_while_a_grammar_compiles_is_not_written_under(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = pair.prefill._jobs
    assert jobs is not None
    engine, loop = jobs._engine, asyncio.get_running_loop()
    prepare, compiling, go_on = engine.prepare, asyncio.Event(), threading.Event()

    def slow(sequence: Sequence) -> None:
        loop.call_soon_threadsafe(compiling.set)
        assert go_on.wait(10)
        prepare(sequence)

    monkeypatch.setattr(engine, "prepare", slow)
    told = pair.router.submit(random_prompt(40), params_of(grammar=LLMatcher.grammar_from_regex("[a-z]{5}")))
    await asyncio.wait_for(compiling.wait(), 10)
    (job,) = jobs._by_key.values()
    abort = cluster_pb2.AbortRequest(
        lease_id=job.lease_id,
        decode_incarnation=job.decode_incarnation,
        prefill_incarnation=pair.router.peers["prefill-0"].incarnation,
    )
    assert (await jobs.abort(abort)).quiesced, "nothing was written, and from now on nothing can be"
    go_on.set()
    ended = await told.until_ended()
    assert (ended.outcome, ended.timings.prefilled_locally, len(told.tokens)) == ("stop", True, 5)
    assert engine.steps == 0
    await asyncio.wait_for(jobs._idle.wait(), 10)


@pytest.mark.parametrize("prefill", ["prefill-0", None])
async def test_an_answer_cut_anywhere_goes_on_as_it_would_have(pair: Pair, prefill: str | None) -> None:
    params = params_of(
        grammar=LLMatcher.grammar_from_regex("([a-z]{1,4}[0-9]{2} )*"),
        temperature=1.2,
        seed=5,
        presence_penalty=0.8,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        min_tokens=20,
        max_tokens=30,
        ignore_eos=False,
    )
    prompt = random_prompt(37)
    whole = pair.router.submit(prompt, params)
    outcome = (await whole.until_ended()).outcome
    assert len(whole.tokens) > 20
    cuts = range(1, len(whole.tokens))
    rests = [pair.router.submit(prompt + whole.tokens[:cut], params, prefill=prefill, output_tokens=cut) for cut in cuts]
    for cut, rest in zip(cuts, rests, strict=True):
        assert (await rest.until_ended()).outcome == outcome
        assert whole.tokens[:cut] + rest.tokens == whole.tokens, f"cut after {cut} tokens"
    over = pair.router.submit(prompt + whole.tokens, params, prefill=prefill, output_tokens=len(whole.tokens))
    assert (await over.until_ended()).outcome == outcome
    assert over.tokens == [], "nothing was lost but the end"


@pytest.mark.parametrize("prefill", ["prefill-0", None])
async def test_prompt_logprobs_come_with_the_first_token(pair: Pair, folder: Path, prefill: str | None) -> None:
    prompt = random_prompt(100)
    await pair.router.submit(prompt, params_of(), prefill=prefill).until_ended()  # now it is in every cache
    told = pair.router.submit(prompt, params_of(prompt_logprobs=3), prefill=prefill)
    await told.until_ended()
    first, *others = told.outputs
    assert all(not output.prompt_logprobs for output in others)
    assert [one.chosen.token_id for one in first.prompt_logprobs] == prompt
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        exact = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1], dim=-1)
    assert (first.prompt_logprobs[0].chosen.logprob, len(first.prompt_logprobs[0].top)) == (0.0, 0)
    for one, row in zip(first.prompt_logprobs[1:], exact, strict=True):
        assert one.chosen.logprob == pytest.approx(float(row[one.chosen.token_id]), abs=1e-4)
        assert [top.logprob for top in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


async def test_siblings_find_the_prompt_while_the_first_still_answers(pair: Pair) -> None:
    prompt = random_prompt(100)
    long = params_of(temperature=1.0, max_tokens=400)
    first = pair.router.submit(prompt, replace(long, seed=0))
    await first.until_tokens(2)
    siblings = [pair.router.submit(prompt, replace(long, seed=seed, max_tokens=10)) for seed in (1, 2, 3)]
    alone = [pair.router.submit(prompt, replace(long, seed=seed, max_tokens=10), prefill=None) for seed in (1, 2, 3)]
    for told, by_itself in zip(siblings, alone, strict=True):
        ended = await told.until_ended()
        assert ended.cached_tokens == 96
        assert ended.timings.transfer_bytes == BLOCK_BYTES, "the tail's one block"
        await by_itself.until_ended()
        assert told.tokens == by_itself.tokens
    assert first.ended is None, "it was still answering"
    assert len({tuple(told.tokens) for told in siblings}) == 3
    assert (await first.until_ended()).timings.transfer_bytes == 7 * BLOCK_BYTES


async def test_a_bug_in_one_request_s_results_ends_that_one_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    told_of, taken = Flow._told, itertools.count(1)

    def broken(self: Flow, update: SequenceUpdate) -> cluster_pb2.RequestOutput | None:
        if self.request.number == 1 and next(taken) > 3:
            raise ZeroDivisionError("a bug")
        return told_of(self, update)

    monkeypatch.setattr(Flow, "_told", broken)
    asked = [pair.router.submit(random_prompt(40, seed), params_of(max_tokens=40)) for seed in range(3)]
    ends = [await told.until_ended() for told in asked]
    assert [ended.outcome for ended in ends] == ["internal", "length", "length"]
    assert [len(told.tokens) for told in asked] == [4, 40, 40], "what the same steps gave the others came through"
    assert ends[0].timings.decode_busy_s > 0, "what was computed for it is told all the same"
    requests = pair.decode._requests
    assert requests is not None
    await asyncio.wait_for(requests._idle.wait(), WAIT_S)
    assert len(requests) == 0
