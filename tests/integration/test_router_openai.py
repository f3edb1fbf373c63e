"""The unmodified `openai` client against a router whose workers speak the real protocol."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.router_support import (
    EOS,
    MODEL,
    WAIT_S,
    Cluster,
    byte_level_tokenizer,
    cluster,
    positional_answer,
    write_model_folder,
)

TEXT = "Hello the stop wörld 😀日本! "
MESSAGES: Any = [{"role": "user", "content": "hi"}]
PROMPT_TOKENS = 20


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(write_model_folder(tmp_path)) as one, one.worker("prefill"), one.worker(answer=positional_answer(TEXT)):
        yield one


def expected(prompt_tokens: int, count: int) -> str:
    tokenizer = byte_level_tokenizer()
    tokens = tokenizer.encode(TEXT).ids
    return str(tokenizer.decode([tokens[p % len(tokens)] for p in range(prompt_tokens, prompt_tokens + count)])).rstrip(
        "\ufffd"
    )


async def test_chat_whole_and_streamed_are_the_same_answer(running: Cluster) -> None:
    whole = await running.openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=60)
    choice = whole.choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected(PROMPT_TOKENS, 60), "length")
    assert choice.message.role == "assistant"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (PROMPT_TOKENS, 60, 80)
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 1

    stream = await running.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=60, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump(exclude={"serval"}) == whole.usage.model_dump(exclude={"serval"})
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert running.outcomes() == {"length": 2}


async def test_completions_whole_and_streamed(running: Cluster) -> None:
    whole = await running.openai.completions.create(model=MODEL, prompt="abc", max_tokens=10)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected(3, 10), "length")
    stream = await running.openai.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=10, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


async def test_each_token_is_an_event_of_its_own_when_the_client_keeps_up(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path)) as one, one.worker() as worker:
        opening = one.openai.completions.create(model=MODEL, prompt="x", max_tokens=4, stream=True)
        asking = asyncio.create_task(opening)
        number = (await worker.next_submit()).request
        tokens = byte_level_tokenizer().encode("abcd").ids
        worker.say_tokens(number, tokens[:1])
        stream = await asyncio.wait_for(asking, WAIT_S)
        texts = [(await anext(stream)).choices[0].text]
        for token in tokens[1:]:
            worker.say_tokens(number, [token])
            texts.append((await anext(stream)).choices[0].text)  # comes without waiting for the next token
        worker.say_ended(number, "length")
        assert texts == list("abcd")
        assert (await anext(stream)).choices[0].finish_reason == "length"


async def test_logprobs_of_both_endpoints(running: Cluster) -> None:
    chat = await running.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=2
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 12
    assert bytes(b for token in logprobs.content for b in token.bytes or []).decode("utf-8", "ignore") == expected(20, 12)
    assert all(len(token.top_logprobs) == 2 and token.logprob == -0.5 for token in logprobs.content)

    completion = await running.openai.completions.create(model=MODEL, prompt="abc", max_tokens=6, logprobs=1)
    listed = completion.choices[0].logprobs
    assert listed is not None and listed.tokens is not None and listed.text_offset is not None
    assert "".join(listed.tokens) == completion.choices[0].text
    offsets = [sum(len(token) for token in listed.tokens[:index]) for index in range(6)]
    assert listed.text_offset == offsets
    assert listed.token_logprobs == [-0.5] * 6

    stream = await running.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [token for chunk in [c async for c in stream] if (lp := chunk.choices[0].logprobs) for token in lp.content or []]
    assert streamed == logprobs.content


@pytest.mark.parametrize("stop", ["stop", ["xyz", "e stop w"], ["wörld", "op"]])
async def test_a_stop_string_across_tokens_ends_the_answer_and_never_leaks(running: Cluster, stop: Any) -> None:
    text = expected(PROMPT_TOKENS, 80)
    stops = [stop] if isinstance(stop, str) else stop
    cut = min((text.find(s) + len(s), text.find(s)) for s in stops if s in text)[1]
    whole = await running.openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=80, stop=stop)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text[:cut], "stop")
    stream = await running.openai.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=80, stop=stop, stream=True, logprobs=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[:cut]
    tokens = [token for chunk in chunks if (lp := chunk.choices[0].logprobs) for token in lp.content or []]
    listed = b"".join(bytes(token.bytes or []) for token in tokens[:-1])
    assert len(listed) < len(text[:cut].encode()), "logprobs of the stop string's tokens have leaked"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert running.outcomes() == {"stop": 2}


async def test_the_end_token_ends_the_answer_and_has_no_text(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path)) as one:
        tokens = byte_level_tokenizer().encode(f"abc{EOS}def").ids
        async with one.worker(answer=lambda submit: tokens):
            answer = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES)
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "stop")
            assert answer.usage is not None and answer.usage.completion_tokens == 4
            c = byte_level_tokenizer().token_to_id("c")
            body = {"stop_token_ids": [c], "ignore_eos": True}
            answer = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=body)
            assert answer.choices[0].message.content == "abdef", "a stop token has no text of its own"


async def test_the_synchronous_client_works_too(running: Cluster) -> None:
    def ask() -> tuple[str | None, list[str], list[str]]:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", timeout=WAIT_S) as client:
            whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=30)
            stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=30, stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
            return whole.choices[0].message.content, pieces, [model.id for model in client.models.list()]

    whole, pieces, models = await asyncio.to_thread(ask)
    assert (whole, "".join(pieces), models) == (expected(PROMPT_TOKENS, 30), whole, [MODEL])


async def test_errors_are_the_client_s_own_exceptions(running: Cluster) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await running.openai.chat.completions.create(model="other", messages=MESSAGES)
    assert (bad.value.param, bad.value.type) == ("model", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="suffix"):
        await running.openai.completions.create(model=MODEL, prompt="x", suffix="y")
    with pytest.raises(openai.NotFoundError):
        await running.openai.models.retrieve("other")
    assert (await running.openai.models.retrieve(MODEL)).owned_by == "serval"


async def test_headers_name_the_workers_and_the_request(running: Cluster) -> None:
    for is_stream in (True, False):
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2, "stream": is_stream}
        response = await running.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        assert response.headers["x-serval-decode-worker"] == "decode-0"
        assert response.headers["x-serval-prefill-worker"] == "prefill-0"
    response = await running.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "two words"})
    assert response.headers["x-request-id"] not in ("", "two words")


async def test_many_at_once_each_get_their_own_answer(running: Cluster) -> None:
    async def ask(length: int) -> tuple[str, int]:
        answer = await running.openai.completions.create(model=MODEL, prompt=[1] * length, max_tokens=40)
        return answer.choices[0].text, length

    for text, length in await asyncio.gather(*(ask(length) for length in range(1, 65))):
        assert text == expected(length, 40)
    assert running.outcomes() == {"length": 64}


async def test_the_figures_of_a_request_are_in_the_metrics(running: Cluster) -> None:
    await running.openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=10)
    value = running.metrics.value
    assert value("serval_prompt_tokens_total") == PROMPT_TOKENS
    assert value("serval_generation_tokens_total") == 10
    assert value("serval_inter_token_latency_seconds_count") == 9
    for once in (
        "time_to_first_token", "e2e_request_latency", "request_time_per_output_token", "request_queue_time",
        "request_prefill_time", "request_transfer_time", "request_decode_time",
    ):  # fmt: skip
        assert value(f"serval_{once}_seconds_count") == 1, once
    assert value("serval_workers", pool="decode") == value("serval_workers", pool="prefill") == 1
    assert value("serval_placements_total", policy="prefix_aware", pool="prefill") == 1
    text = (await running.http.get("/metrics")).text
    assert 'serval_requests_total{outcome="length",role="router",tenant="default",worker="router-0"} 1.0' in text
    await running.until(lambda: value("serval_num_requests_running") == value("serval_num_requests_waiting") == 0)
