"""An answer whose decode worker is lost goes on as if nothing had been: what the client has at the end is what it has undisturbed,
whatever it asked for and wherever the cut was."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
import torch
from llguidance import LLMatcher

from engine.tiny import write_tiny_llama
from protocol import serval_pb2
from tests.integration.continuation_kinds import COMPLETION, COUNTED, DRAWN, FUNCTIONS, KINDS, PROMPT, QUESTION
from tests.integration.continuation_support import ContinuationCluster, continuation_cluster
from tests.integration.continuation_views import COMPLETIONS, Json, ask_grpc, ask_http, ask_responses

pytestmark = pytest.mark.asyncio(loop_scope="module")

Asking = Callable[[bool], Awaitable[Json]]
"""Asks for a stream, or a whole answer, and returns what the client has."""

Cuts = list[tuple[int, ...]] | Callable[[Json], list[tuple[int]]]


def http(running: ContinuationCluster, path: str, body: Json) -> Asking:
    return lambda stream: ask_http(running.front.http, path, body, stream)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ContinuationCluster]:
    torch.set_num_threads(1)
    async with continuation_cluster(write_tiny_llama(tmp_path_factory.mktemp("tiny"))) as one:
        yield one


async def assert_goes_on(running: ContinuationCluster, asking: Asking, cuts: Cuts) -> None:
    """Each cut in a stream or a whole answer, in turn. `cuts`: how many tokens the client has at each loss of a worker."""
    undisturbed = await asking(True)
    for number, cut in enumerate(cuts(undisturbed) if callable(cuts) else cuts):
        running.knife.arm(*cut)
        again = await asking(number % 2 == 0)
        assert running.knife.cut_at == list(cut), "it was not cut there"
        assert again == undisturbed, f"cut after {cut} tokens"
        await running.until_whole()


def tokens_in(answer: Json) -> int:
    """In the longest of its choices at least so many."""
    return int(answer["usage"]["completion_tokens"]) // len(answer["choices"])


def every_cut(answer: Json) -> list[tuple[int]]:
    """Before the first token, behind each, and before the word that it has ended."""
    return [(cut,) for cut in range(tokens_in(answer) + 1)]


def some_cuts(kind: str) -> Callable[[Json], list[tuple[int]]]:
    """Three of them: near either end, and somewhere between. Together the kinds have all of the ends."""
    place = list(KINDS).index(kind)

    def cuts(answer: Json) -> list[tuple[int]]:
        tokens = tokens_in(answer)
        return [(place % 3,), (random.Random(kind).randrange(3, tokens - 1),), (tokens - place % 2,)]

    return cuts


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_the_same_wherever_it_is_cut(running: ContinuationCluster, kind: str) -> None:
    await assert_goes_on(running, http(running, *KINDS[kind]), some_cuts(kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_the_same_cut_after_every_single_token(running: ContinuationCluster, kind: str) -> None:
    await assert_goes_on(running, http(running, *KINDS[kind]), every_cut)


@pytest.mark.parametrize("kind", ["seeded", "JSON schema", "tool calls"])
async def test_it_is_the_same_after_three_losses(running: ContinuationCluster, kind: str) -> None:
    await assert_goes_on(running, http(running, *KINDS[kind]), [(2, 9, 17)])


async def test_tokens_and_outcomes_are_counted_once(running: ContinuationCluster) -> None:
    front = running.front
    path, body = KINDS["three answers"]
    before = front.outcomes().get("length", 0)
    counters = ("serval_generation_tokens_total", "serval_prompt_tokens_total")
    tokens = [front.metrics.value(counter) for counter in counters]
    running.knife.arm(1, 8)
    answer = await ask_http(front.http, path, body, True)
    assert running.knife.cut_at == [1, 8]
    assert front.outcomes()["length"] - before == 3
    generated, prompts = (front.metrics.value(counter) - was for counter, was in zip(counters, tokens, strict=True))
    assert generated == answer["usage"]["completion_tokens"] == 3 * body["max_tokens"]
    assert prompts == 3 * len(PROMPT), "per answer, as ever, and not per worker"
    await running.until_whole()


async def test_a_stop_string_that_straddles_the_cut_is_found(running: ContinuationCluster) -> None:
    """A token is a byte here, so the cuts are before, within and behind it. None of it goes out, and none of what it held back
    is lost where it was not one."""
    path, body = KINDS["regular expression"]
    whole = (await ask_http(running.front.http, path, body, False))["choices"][0]["text"]
    stop = whole[6:11]
    begins_like_it = whole[2:5] + "#"
    stopping = {**body, "stop": [stop, begins_like_it]}
    (choice,) = (await ask_http(running.front.http, path, stopping, False))["choices"]
    assert (choice["text"], choice["finish"]) == (whole[: whole.index(stop)], "stop")
    cuts = [(4,), *((whole.index(stop) + within,) for within in range(1, len(stop)))]
    await assert_goes_on(running, http(running, path, stopping), cuts)


async def test_prompt_logprobs_are_said_once(running: ContinuationCluster) -> None:
    body = {**COMPLETION, **DRAWN, "ignore_eos": True, "prompt_logprobs": 2, "logprobs": 2}
    await assert_goes_on(running, lambda _: ask_http(running.front.http, COMPLETIONS, body, False), [(0,), (7,)])


@pytest.mark.parametrize("kind", ["text", "calls"])
async def test_a_response_s_events_are_in_order(running: ContinuationCluster, kind: str) -> None:
    body: Json = {"input": QUESTION, "temperature": 0, "max_output_tokens": 60}
    if kind == "calls":
        body |= {"tools": [{"type": "function", **each} for each in FUNCTIONS], "tool_choice": "required"}
    await assert_goes_on(running, lambda _: ask_responses(running.front.http, body), [(3,), (40,)])


async def test_over_grpc_it_is_the_same_token_for_token(running: ContinuationCluster) -> None:
    grammar = LLMatcher.grammar_from_regex("([a-z]{1,4}[0-9]{2} )*")
    sampling = serval_pb2.Sampling(
        **DRAWN, **COUNTED, max_tokens=24, logprobs=3, prompt_logprobs=1, structured_output={"grammar": grammar}
    )  # fmt: skip
    request = serval_pb2.GenerateRequest(token_ids={"ids": PROMPT}, sampling=sampling, n=2, echo=True)

    async def asking(_: bool) -> Any:
        return await ask_grpc(running.front.channel, request)

    await assert_goes_on(running, asking, [(1,), (24,), (4, 15)])
