"""The unmodified `openai` client on /v1/responses, against a router whose workers speak the real protocol."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from llguidance import LLMatcher

from tests.integration.router_support import MODEL, Cluster
from tests.integration.tools_support import TOOLS_CONTEXT, WEATHER_SCHEMA, call_text, prompt_of, said, tools_cluster

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather.",
    "parameters": WEATHER_SCHEMA,
    "strict": False,
}
PARIS = {"city": "Päris", "days": 2}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with tools_cluster(tmp_path) as one:
        yield one


def worker(running: Cluster, text: str) -> Any:
    return running.worker(answer=said(text), max_model_len=TOOLS_CONTEXT)


async def test_text(running: Cluster) -> None:
    async with worker(running, "Hello wörld.") as one:
        answer = await running.openai.responses.create(
            model=MODEL, input="Hi", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5, top_p=0.9, store=False
        )
    assert (answer.status, answer.output_text, answer.error, answer.incomplete_details) == (
        "completed",
        "Hello wörld.",
        None,
        None,
    )
    assert (answer.metadata, answer.instructions, answer.temperature, answer.top_p) == ({"a": "b"}, "Be brief.", 0.5, 0.9)
    assert (answer.object, answer.model, answer.id[:5], answer.previous_response_id) == ("response", MODEL, "resp_", None)
    [item] = answer.output
    assert item.type == "message"
    assert (item.role, item.status) == ("assistant", "completed")
    assert answer.usage is not None
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(one.submits[0]) == prompt
    assert answer.usage.input_tokens == len(one.submits[0].prompt)
    assert answer.usage.input_tokens_details.cached_tokens == 1
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


async def test_an_answer_cut_short_is_incomplete(running: Cluster) -> None:
    async with worker(running, "Hello world."):
        answer = await running.openai.responses.create(model=MODEL, input="Hi", max_output_tokens=5)
        stream = await running.openai.responses.create(model=MODEL, input="Hi", max_output_tokens=5, stream=True)
        events = [event async for event in stream]
    assert (answer.status, answer.output_text, answer.max_output_tokens) == ("incomplete", "Hello", 5)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == "Hello"


async def test_a_stream_of_text_has_every_event_in_order(running: Cluster) -> None:
    async with worker(running, "Hey"):
        stream = await running.openai.responses.create(model=MODEL, input=[{"role": "user", "content": "Hi"}], stream=True)
        events: list[Any] = [event async for event in stream]
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hey"
    first, last = events[0].response, events[-1].response
    assert (first.status, first.output, first.usage) == ("in_progress", [], None)
    assert (last.status, last.output_text, last.id) == ("completed", "Hey", first.id)
    assert last.usage.output_tokens == 4
    assert len({event.item_id for event in events if hasattr(event, "item_id")} | {last.output[0].id}) == 1


async def test_calls_whole_and_streamed(running: Cluster) -> None:
    text = "Let me see.\n" + call_text("get_weather", PARIS) + "\n" + call_text("now", {})
    tools = [TOOL, {"type": "function", "name": "now", "parameters": None, "strict": None}]
    async with worker(running, text) as one:
        whole = await running.openai.responses.create(model=MODEL, input="Hi", tools=tools)
        async with running.openai.responses.stream(model=MODEL, input="Hi", tools=[TOOL, tools[1]]) as stream:
            events: list[Any] = [event async for event in stream]
            final = await stream.get_final_response()
    for answer in (whole, final):
        message, first, second = answer.output
        assert (answer.status, answer.output_text) == ("completed", "Let me see.")
        assert (message.type, first.type, second.type) == ("message", "function_call", "function_call")
        assert (first.name, json.loads(first.arguments)) == ("get_weather", PARIS)  # type: ignore[union-attr]
        assert (second.name, json.loads(second.arguments)) == ("now", {})  # type: ignore[union-attr]
        assert first.call_id != second.call_id  # type: ignore[union-attr]
        assert [item.status for item in answer.output] == ["completed"] * 3  # type: ignore[union-attr]
    arguments = [
        event for event in events if event.type == "response.function_call_arguments.delta" and event.output_index == 1
    ]
    assert len(arguments) > 5
    assert arguments[-1].snapshot == json.dumps(PARIS, ensure_ascii=False)
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.name, event.output_index) for event in done] == [("get_weather", 1), ("now", 2)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert '"name": "get_weather"' in prompt_of(one.submits[0])


async def test_the_next_turn_brings_everything_along(running: Cluster) -> None:
    async with worker(running, call_text("get_weather", PARIS)):
        first = await running.openai.responses.create(model=MODEL, input="Weather?", tools=[TOOL])
    [call] = first.output
    assert call.type == "function_call"
    history: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        *first.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    async with worker(running, "It rains.") as one:
        second = await running.openai.responses.create(model=MODEL, input=history, tools=[TOOL])
        history += [*second.output, {"role": "user", "content": "Sure?"}]
        await running.openai.responses.create(model=MODEL, input=history)
    assert second.output_text == "It rains."
    turns = (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n{call_text('get_weather', PARIS)}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
    )
    assert prompt_of(one.submits[0]).endswith(turns + "<|im_start|>assistant\n")
    last = "<|im_start|>assistant\nIt rains.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(one.submits[1]) == turns + last


async def test_a_forced_call_goes_to_workers_as_a_grammar(running: Cluster) -> None:
    async with worker(running, call_text("get_weather", PARIS)) as one:
        for choice in ("required", {"type": "function", "name": "get_weather"}):
            answer = await running.openai.responses.create(
                model=MODEL, input="Hi", tools=[TOOL], tool_choice=choice, parallel_tool_calls=False  # type: ignore[arg-type]
            )  # fmt: skip
            assert answer.output[0].type == "function_call"
            assert answer.parallel_tool_calls is False
        answer = await running.openai.responses.create(model=MODEL, input="Hi", tools=[TOOL], tool_choice="none")
        assert answer.output_text == call_text("get_weather", PARIS)
    required, named, none = (submit.sampling.structured_output.grammar for submit in one.submits)
    assert required == named
    assert LLMatcher.validate_grammar(required) == ""
    assert '"get_weather"' in required.replace('\\"', '"')
    assert none == ""


class Weather(pydantic.BaseModel):
    city: str
    days: int


async def test_parse_fills_a_model(running: Cluster) -> None:
    async with worker(running, json.dumps(PARIS)) as one:
        answer = await running.openai.responses.parse(model=MODEL, input="Hi", text_format=Weather)
        plain = await running.openai.responses.create(model=MODEL, input="Hi", text={"format": {"type": "json_object"}})
    assert answer.output_parsed == Weather(city="Päris", days=2)
    assert json.loads(plain.output_text) == PARIS
    grammar = one.submits[0].sampling.structured_output.grammar
    assert LLMatcher.validate_grammar(grammar) == ""
    assert "city" in grammar


async def test_parse_fills_the_arguments_of_a_tool(running: Cluster) -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather")["function"]
    strict: Any = {"type": "function", **tool}
    async with worker(running, call_text("get_weather", PARIS)) as one:
        answer = await running.openai.responses.parse(model=MODEL, input="Hi", tools=[strict])
    assert answer.output[0].type == "function_call"
    assert answer.output[0].parsed_arguments == PARIS
    assert one.submits[0].sampling.structured_output.grammar


async def test_logprobs(running: Cluster) -> None:
    async with worker(running, "Hey"):
        answer = await running.openai.responses.create(
            model=MODEL, input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
        )
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert [token.token for token in part.logprobs[:3]] == ["H", "e", "y"]
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


async def test_a_stream_that_fails_midway_says_so(running: Cluster) -> None:
    async with running.worker(max_model_len=TOOLS_CONTEXT) as one:
        stream = running.openai.responses.create(model=MODEL, input="Hi", stream=True)
        asking = asyncio.create_task(stream)
        submit = await one.next_submit()
        one.say_tokens(submit.request, [40, 41])
        events: list[Any] = []
        async for event in await asking:
            if not events:
                one.say_ended(submit.request, "internal", "the engine broke")
            events.append(event)
    assert events[-1].type == "response.failed"
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
    assert "the engine broke" in events[-1].response.error.message


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"store": True}, "store"),
    ({"truncation": "auto"}, "truncation"),
    ({"reasoning": {"effort": "low"}}, "reasoning"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL, {"type": "file_search", "vector_store_ids": []}]}, "tools[1].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{**TOOL, "strict": True, "parameters": {"type": "object", "not": {}}}]}, "tools[0].parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "now"}, "tools": [TOOL]}, "tool_choice"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "["}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"max_output_tokens": 5000}, "max_output_tokens"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"model": "another"}, "model"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"what_is_this": 1}, "what_is_this"),
]


async def test_what_is_not_done_is_refused_by_name(running: Cluster) -> None:
    for asked, field in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await running.openai.post("/responses", body={"model": MODEL, "input": "Hi", **asked}, cast_to=object)
        assert refused.value.param == field, asked
        assert field in refused.value.message
    assert running.metrics.value("serval_rejections_total", reason="invalid") == len(REFUSED)
