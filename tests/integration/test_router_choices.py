"""Several answers per call, echo, prompt logprobs, figures, structured output and tools: what clients read."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from protocol import cluster_pb2
from router.session import SESSION_HEADERS
from tests.integration.router_support import (
    MODEL,
    WAIT_S,
    Answer,
    Cluster,
    byte_level_tokenizer,
    cluster,
    positional_answer,
    write_model_folder,
)

TEXT = "Hello the stop wörld 😀日本! "
TOKENIZER = byte_level_tokenizer()
MESSAGES: Any = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def by_seed(texts: list[str], first_seed: int) -> Answer:
    """The answer that goes with a submit's seed."""
    return lambda submit: TOKENIZER.encode(texts[submit.sampling.seed - first_seed]).ids


def ending(text: str) -> Answer:
    """The text and an end token."""
    return lambda submit: TOKENIZER.encode(text + "<|im_end|>").ids


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(write_model_folder(tmp_path)) as running, running.worker("prefill"):
        yield running


async def test_n_answers_each_with_its_own_seed_whole_and_streamed(one: Cluster) -> None:
    texts = ["ab", "the stop", "wörld 😀"]
    async with one.worker(answer=by_seed(texts, 7)) as worker:
        whole = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, seed=7, max_tokens=20)
        assert [choice.message.content for choice in whole.choices] == texts
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (20, sum(len(TOKENIZER.encode(t)) for t in texts))
        assert [submit.sampling.seed for submit in worker.submits] == [7, 8, 9]
        assert len({submit.request_id for submit in worker.submits}) == 3

        stream = await one.openai.chat.completions.create(
            model=MODEL, messages=MESSAGES, n=3, seed=7, stream=True, stream_options={"include_usage": True}
        )
        received = dict.fromkeys(range(3), "")
        roles, reasons, usages = [], [], []
        async for chunk in stream:
            usages += [chunk.usage] if chunk.usage else []
            for choice in chunk.choices:
                received[choice.index] += choice.delta.content or ""
                roles += [choice.index] if choice.delta.role else []
                reasons += [choice.index] if choice.finish_reason else []
        assert list(received.values()) == texts
        assert sorted(roles) == sorted(reasons) == [0, 1, 2]
        assert [usage.completion_tokens for usage in usages] == [whole.usage.completion_tokens]
    assert one.outcomes() == {"length": 6}


@pytest.mark.parametrize("prompts", [["ab", "the", "x"], [[64, 65], [257], [87]]])
async def test_a_batch_is_numbered_prompt_by_prompt(one: Cluster, prompts: Any) -> None:
    async with one.worker(answer=lambda submit: [*submit.prompt, 48 + submit.sampling.seed]):
        answer = await one.openai.completions.create(model=MODEL, prompt=prompts, n=2, seed=0, echo=True)
        expected = [f"{text}{text}{'QR'[copy]}" for text in ("ab", "the", "x") for copy in range(2)]
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert answer.usage is not None and answer.usage.prompt_tokens == 4
        stream = await one.openai.completions.create(model=MODEL, prompt=prompts, n=2, seed=0, echo=True, stream=True)
        received = [""] * 6
        async for chunk in stream:
            received[chunk.choices[0].index] += chunk.choices[0].text
        assert received == expected


async def test_one_failed_answer_fails_the_call_and_the_others_are_abandoned(one: Cluster) -> None:
    for is_stream in (False, True):
        async with one.worker() as worker:
            body = {"model": MODEL, "prompt": [[1], [2]], "stream": is_stream}
            asking = asyncio.create_task(one.http.post("/v1/completions", json=body))
            first, second = await worker.next_submit(), await worker.next_submit()
            worker.say_tokens(first.request, [64])
            await one.until(lambda: one.metrics.value("serval_num_requests_running") == 1)
            worker.say_ended(second.request, "internal", "broken")
            assert await worker.next_cancel() == first.request
            response = await asyncio.wait_for(asking, WAIT_S)
            assert "broken" in response.text
            assert (response.status_code, "[DONE]" in response.text) == ((200, False) if is_stream else (500, False))
            await one.until(lambda: one.router.members is not None and one.metrics.value("serval_num_requests_running") == 0)


async def test_a_disconnect_abandons_every_answer(one: Cluster) -> None:
    async with one.worker() as worker:
        asking = asyncio.create_task(one.http.post("/v1/completions", json={"model": MODEL, "prompt": ["a", "b", "c"]}))
        numbers = {(await worker.next_submit()).request for _ in range(3)}
        asking.cancel()
        assert {await worker.next_cancel() for _ in range(3)} == numbers
    await one.until(lambda: one.outcomes() == {"cancelled": 3})


async def test_echo_with_logprobs_is_what_lm_eval_reads(one: Cluster) -> None:
    async with one.worker(answer=positional_answer(TEXT)):
        prompts = [[64, 65, 66], [257, 87]]
        body = {"model": MODEL, "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
        choices = (await one.http.post("/v1/completions", json=body)).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        for choice, prompt in zip(choices, prompts, strict=True):
            listed = choice["logprobs"]
            assert listed["token_logprobs"] == [None, *(-float(index) for index in range(1, len(prompt))), -0.5]
            assert listed["top_logprobs"][0] is None
            # lm-eval takes a token for greedy where its own is the highest of those listed: it must be among them.
            for top, own in zip(listed["top_logprobs"][1:], listed["token_logprobs"][1:], strict=True):
                assert max(top.values()) >= own
                assert own in top.values()
            assert "".join(listed["tokens"]) == choice["text"]
            lengths = [len(token) for token in listed["tokens"]]
            assert listed["text_offset"] == [sum(lengths[:index]) for index in range(len(lengths))]


async def test_a_prompt_alone_is_scored_with_max_tokens_zero(one: Cluster) -> None:
    async with one.worker(answer=positional_answer(TEXT)) as worker:
        for is_stream in (False, True):
            body = {"model": MODEL, "prompt": "the stop", "echo": True, "max_tokens": 0, "logprobs": 0, "stream": is_stream}
            response = await one.http.post("/v1/completions", json=body)
            bodies = [response.json()] if not is_stream else events(response.text)
            assert "".join(choice["text"] for each in bodies for choice in each["choices"]) == "the stop"
            assert [c["finish_reason"] for each in bodies for c in each["choices"] if c["finish_reason"]] == ["length"]
            tokens = [t for each in bodies for c in each["choices"] for t in (c["logprobs"] or {}).get("tokens", [])]
            assert "".join(tokens) == "the stop"
        assert worker.submits[0].sampling.max_tokens == 1
        refused = await one.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 0})
        assert refused.status_code == 400


async def test_prompt_logprobs_are_vllm_s(one: Cluster) -> None:
    async with one.worker(answer=positional_answer(TEXT)):
        asked = {"extra_body": {"prompt_logprobs": 1}, "max_tokens": 1}
        completion: Any = await one.openai.completions.create(model=MODEL, prompt=[64, 65], **asked)  # type: ignore[call-overload]
        listed = completion.choices[0].prompt_logprobs
        assert listed[0] is None
        assert listed[1]["65"] == {"logprob": -1.0, "rank": None, "decoded_token": "b"}
        assert listed[1]["66"]["rank"] == 1
        chat: Any = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, **asked)  # type: ignore[call-overload]
        assert len(chat.prompt_logprobs) == 20


async def test_figures_are_in_headers_and_usage(one: Cluster) -> None:
    async with one.worker(answer=positional_answer(TEXT)):
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5}
        response = await one.http.post("/v1/chat/completions", json=body, headers={"x-serval-debug": "1"})
        figures = response.json()["usage"]["serval"]
        assert (figures["decode_worker"], figures["prefill_worker"]) == ("decode-0", "prefill-0")
        assert float(response.headers["x-serval-ttft-ms"]) == pytest.approx(figures["ttft_s"] * 1000, abs=0.001)
        assert figures["ttft_s"] > 0
        assert float(response.headers["x-serval-tokens-per-second"]) > 0
        assert float(response.headers["x-serval-cost-usd"]) == pytest.approx(figures["cost_usd"], abs=1e-9)
        assert isinstance(json.loads(response.headers["x-serval-placement"]), dict)
        plain = await one.http.post("/v1/chat/completions", json=body)
        assert "x-serval-placement" not in plain.headers


async def test_an_answer_that_the_router_ends_at_a_stop_string_still_tells_what_was_cached(one: Cluster) -> None:
    async with one.worker() as worker:
        for is_stream in (False, True):
            body: Any = {"model": MODEL, "prompt": "abc", "stop": "b", "stream": is_stream}
            body |= {"stream_options": {"include_usage": True}} if is_stream else {}
            asking = asyncio.create_task(one.http.post("/v1/completions", json=body))
            number = (await worker.next_submit()).request
            worker.say_tokens(number, TOKENIZER.encode("ab").ids)
            assert await worker.next_cancel() == number
            timings = cluster_pb2.Timings(prefill_busy_s=1.0, decode_busy_s=1.0)
            worker.say_ended(number, "cancelled", cached_tokens=2, timings=timings)
            text = (await asyncio.wait_for(asking, WAIT_S)).text
            last = events(text)[-1] if is_stream else json.loads(text)
            assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


async def test_a_response_format_becomes_a_grammar_at_the_worker(one: Cluster) -> None:
    async with one.worker(answer=ending('{"a": 1}')) as worker:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        formats: list[Any] = [
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}},
            {"response_format": {"type": "json_object"}},
            {"extra_body": {"guided_json": schema}},
            {"extra_body": {"structured_outputs": {"json": json.dumps(schema)}}},
            {"extra_body": {"structured_outputs": {"regex": "[a-z]+"}}},
            {"extra_body": {"guided_choice": ['a"b', "c"]}},
            {"extra_body": {"guided_grammar": 'start: "a" | "b"'}},
            {"extra_body": {"ebnf": 'root ::= "a" | "b"'}},
        ]
        for asked in formats:
            answer = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, **asked)
            assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
            grammars = {submit.sampling.structured_output.grammar for submit in worker.submits[-2:]}
            assert len(grammars) == 1 and grammars != {""}
        parsed = await one.openai.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=_Answer)
        assert parsed.choices[0].message.parsed == _Answer(a=1)
        with pytest.raises(openai.BadRequestError, match="response_format") as refused:
            bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
            await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=bad)
        assert refused.value.param == "response_format"


async def test_tool_calls_whole_and_streamed(tmp_path: Path) -> None:
    # The tools' description alone is longer than the other tests' context.
    async with (
        cluster(write_model_folder(tmp_path), max_model_len=2000) as one,
        one.worker(answer=ending("Let me see. " + CALL), max_model_len=2000, kv_blocks=200) as worker,
    ):
        for n in (1, 2):
            whole = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER], n=n)
            for choice in whole.choices:
                assert choice.finish_reason == "tool_calls"
                (call,) = choice.message.tool_calls or []
                assert call.type == "function"
                assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
                assert choice.message.content == "Let me see."
        stream = await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER], stream=True)
        text, arguments, names, reasons = "", "", [], []
        async for chunk in stream:
            choice_ = chunk.choices[0]
            text += choice_.delta.content or ""
            reasons += [choice_.finish_reason] if choice_.finish_reason else []
            for delta in choice_.delta.tool_calls or []:
                assert delta.index == 0 and delta.function is not None
                names += [delta.function.name] if delta.function.name else []
                arguments += delta.function.arguments or ""
        assert (text, names, json.loads(arguments), reasons) == ("Let me see.", ["weather"], {"city": "Köln"}, ["tool_calls"])

        calls = whole.choices[0].message.model_dump()
        told = [*MESSAGES, calls, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        await one.openai.chat.completions.create(model=MODEL, messages=told, tools=[WEATHER])
        forced = {"type": "function", "function": {"name": "weather"}}
        await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER], tool_choice=forced)  # type: ignore[arg-type]
        assert worker.submits[-1].sampling.structured_output.grammar
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            await one.openai.chat.completions.create(model=MODEL, messages=MESSAGES, tool_choice="required")


async def test_replies_are_exactly_what_the_client_s_types_say(one: Cluster) -> None:
    async with one.worker(answer=positional_answer(TEXT)):
        chat = await one.http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": MESSAGES, "max_tokens": 4, "logprobs": True, "top_logprobs": 1},
        )
        assert known(ChatCompletion.model_validate(chat.json())) == {"usage.serval"}
        completion = await one.http.post(
            "/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 4, "logprobs": 1}
        )
        assert known(Completion.model_validate(completion.json())) == {"usage.serval"}


@pytest.mark.parametrize(("path", "kind"), [("chat/completions", ChatCompletionChunk), ("completions", Completion)])
async def test_so_is_every_event_of_a_stream(one: Cluster, path: str, kind: Any) -> None:
    async with one.worker(answer=positional_answer(TEXT)):
        body: dict[str, Any] = {
            "model": MODEL,
            "max_tokens": 6,
            "n": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= (
            {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1} if "chat" in path else {"prompt": "a", "logprobs": 1}
        )
        response = await one.http.post(f"/v1/{path}", json=body)
        assert response.text.endswith("data: [DONE]\n\n")
        # The client builds chunks without validating them: its Completion knows no chunk without a finish reason.
        chunks = [kind.construct(**event) for event in events(response.text)]
        assert set().union(*(known(chunk) for chunk in chunks)) == {"usage.serval"}
        if kind is ChatCompletionChunk:
            assert [kind.model_validate(event) for event in events(response.text)] == chunks
        assert len({chunk.id for chunk in chunks}) == 1
        assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def known(model: Any, path: str = "") -> set[str]:
    """What the reply has and the client's types do not know."""
    unknown = {f"{path}{name}" for name in model.model_extra or {}}
    for name in type(model).model_fields:
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            if hasattr(each, "model_extra"):
                unknown |= known(each, f"{path}{name}.")
    return unknown


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


class _Answer(openai.BaseModel):
    a: int


SESSIONS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"prompt_cache_key": "talk-1"}, {}),
    *[({}, {header: "talk-1"}) for header in SESSION_HEADERS],
    ({"user": "talk-1"}, {}),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_a_session_goes_to_the_same_worker_however_it_is_named(one: Cluster, path: str) -> None:
    words = {"/v1/responses": "input", "/v1/completions": "prompt"}
    answer = positional_answer(TEXT)
    async with one.worker(name="a", answer=answer), one.worker(name="b", answer=answer), one.worker(name="c", answer=answer):
        chosen = []
        for number, (body, headers) in enumerate(SESSIONS):
            text = f"{number} is no prefix of another"
            asked = {
                "model": MODEL,
                words.get(path, "messages"): text if path in words else [{"role": "user", "content": text}],
            }
            if path != "/v1/responses":
                asked["max_tokens"] = 2
            response = await one.http.post(path, json={**asked, **body}, headers={"x-serval-debug": "1", **headers})
            decision = json.loads(response.headers["x-serval-placement"])["decode"]
            chosen.append((decision["worker"], decision["reason"]))
        assert chosen == [(chosen[0][0], "session")] * len(SESSIONS)
