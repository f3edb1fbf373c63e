"""Tools by the unmodified `openai` client (and over gRPC) against a router whose workers say what models say."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from llguidance import LLMatcher

from protocol import serval_pb2, serval_pb2_grpc
from tests.integration.router_support import MODEL, WAIT_S, Cluster
from tests.integration.tools_support import TOOLS_CONTEXT, WEATHER_SCHEMA, call_text, prompt_of, said, tools_cluster

FUNCTION: Any = {"name": "get_weather", "description": "Weather.", "parameters": WEATHER_SCHEMA}
TOOL: Any = {"type": "function", "function": FUNCTION}
NOW: Any = {"type": "function", "function": {"name": "now"}}
USER: Any = {"role": "user", "content": "Weather?"}
PARIS = {"city": "Päris", "days": 2}
TWO_CALLS = "Let me see.\n" + call_text("get_weather", PARIS) + "\n" + call_text("now", {})


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with tools_cluster(tmp_path) as one:
        yield one


def worker(running: Cluster, text: str) -> Any:
    return running.worker(answer=said(text), max_model_len=TOOLS_CONTEXT)


async def test_calls_whole(running: Cluster) -> None:
    async with worker(running, TWO_CALLS) as one:
        answer = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL, NOW])
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    first, second = choice.message.tool_calls or ()
    assert (first.type, second.type) == ("function", "function")
    assert (first.function.name, json.loads(first.function.arguments)) == ("get_weather", PARIS)
    assert (second.function.name, json.loads(second.function.arguments)) == ("now", {})
    assert first.id != second.id
    assert json.dumps(TOOL) in prompt_of(one.submits[0])


async def test_calls_streamed(running: Cluster) -> None:
    async with worker(running, TWO_CALLS):
        stream = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL, NOW], stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        async with running.openai.chat.completions.stream(model=MODEL, messages=[USER], tools=[TOOL, NOW]) as helper:
            final = await helper.get_final_completion()
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or ()]
    assert [delta.index for delta in deltas if delta.id] == [0, 1]
    assert [delta.function.name for delta in deltas if delta.id and delta.function] == ["get_weather", "now"]
    assert len(deltas) > 10
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.index == 0 and delta.function)
    assert json.loads(arguments) == PARIS
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "Let me see."
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    calls = final.choices[0].message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", PARIS),
        ("now", {}),
    ]


async def test_every_answer_of_n_has_its_own_calls(running: Cluster) -> None:
    async with worker(running, TWO_CALLS):
        answer = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL, NOW], n=2)
    calls = [choice.message.tool_calls or [] for choice in answer.choices]
    assert [len(each) for each in calls] == [2, 2]
    assert len({call.id for each in calls for call in each}) == 4


async def test_without_calls_it_is_a_plain_answer(running: Cluster) -> None:
    async with worker(running, "No < tools <tool_call>needed</tool_call>."):
        answer = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL])
    assert answer.choices[0].message.content == "No < tools <tool_call>needed</tool_call>."
    assert (answer.choices[0].finish_reason, answer.choices[0].message.tool_calls) == ("stop", None)


async def test_a_call_cut_short_ends_by_length(running: Cluster) -> None:
    async with worker(running, call_text("get_weather", PARIS)):
        answer = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL], max_tokens=60)
    [call] = answer.choices[0].message.tool_calls or ()
    assert answer.choices[0].finish_reason == "length"
    assert json.dumps(PARIS, ensure_ascii=False).startswith(call.function.arguments)


async def test_what_tool_choice_means_for_the_workers(running: Cluster) -> None:
    named: Any = {"type": "function", "function": {"name": "now"}}
    async with worker(running, call_text("now", {})) as one:
        for choice in ("auto", "required", named):
            answer = await running.openai.chat.completions.create(
                model=MODEL, messages=[USER], tools=[TOOL, NOW], tool_choice=choice
            )
            assert answer.choices[0].finish_reason == "tool_calls"
        answer = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL], tool_choice="none")
        assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("stop", call_text("now", {}))
        await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[NOW], parallel_tool_calls=False)
    auto, required, by_name, none, single = (submit.sampling.structured_output.grammar for submit in one.submits)
    assert (auto, none) == ("", "")
    assert all(LLMatcher.validate_grammar(grammar) == "" for grammar in (required, by_name, single))
    assert "get_weather" in required
    assert "get_weather" not in by_name
    assert "# Tools" not in prompt_of(one.submits[3])


async def test_a_conversation_with_results(running: Cluster) -> None:
    async with worker(running, TWO_CALLS):
        first = await running.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL, NOW])
    message = first.choices[0].message
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": call.id} for call in message.tool_calls or ()]
    async with worker(running, "It rains.") as one:
        second = await running.openai.chat.completions.create(
            model=MODEL, messages=[USER, message, *results], tools=[TOOL, NOW]  # type: ignore[list-item]
        )  # fmt: skip
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("It rains.", "stop")
    responses = "\n".join(f"<tool_response>\n{result['content']}\n</tool_response>" for result in results)
    assert prompt_of(one.submits[0]).endswith(
        f"<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n{TWO_CALLS}<|im_end|>\n"
        f"<|im_start|>user\n{responses}<|im_end|>\n<|im_start|>assistant\n"
    )


class Weather(pydantic.BaseModel):
    city: str
    days: int


async def test_strict_tools_are_parsed_into_models(running: Cluster) -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    async with worker(running, call_text("get_weather", PARIS)) as one:
        answer = await running.openai.chat.completions.parse(model=MODEL, messages=[USER], tools=[tool])
    [call] = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == Weather(city="Päris", days=2)
    assert LLMatcher.validate_grammar(one.submits[0].sampling.structured_output.grammar) == ""


async def test_calls_over_grpc(running: Cluster) -> None:
    tool = serval_pb2.Tool(name="get_weather", parameters_json=json.dumps(WEATHER_SCHEMA))
    chat = serval_pb2.Chat(messages=[serval_pb2.ChatMessage(role="user", content="Weather?")], tools=[tool])
    async with worker(running, "Hm. " + call_text("get_weather", PARIS)):
        asked = serval_pb2.GenerateRequest(chat=chat)
        responses = [each async for each in serval_pb2_grpc.ServalStub(running.channel).Generate(asked, timeout=WAIT_S)]
    deltas = [delta for response in responses for delta in response.tool_calls]
    assert "".join(response.text for response in responses) == "Hm."
    assert [(delta.index, delta.name) for delta in deltas if delta.id] == [(0, "get_weather")]
    assert json.loads("".join(delta.arguments for delta in deltas)) == PARIS
    assert responses[-1].finish.reason == serval_pb2.FINISH_REASON_TOOL_CALLS


async def test_the_parser_can_be_chosen(tmp_path: Path) -> None:
    async with tools_cluster(tmp_path, tool_parser="llama3") as one, worker(one, '{"name": "now", "parameters": {}}'):
        answer = await one.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[NOW])
        assert answer.choices[0].finish_reason == "tool_calls"
    async with tools_cluster(tmp_path, tool_parser="none") as one:
        with pytest.raises(openai.BadRequestError, match="tool_parser"):
            await one.openai.chat.completions.create(model=MODEL, messages=[USER], tools=[NOW])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    (
        {"tools": [{"type": "function", "function": {**FUNCTION, "parameters": {"type": "array"}}}]},
        "tools[0].function.parameters",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
        "tools[0].function.parameters",
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "now"}}, "tools": [TOOL]}, "tool_choice"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
]


async def test_what_is_wrong_is_named(running: Cluster) -> None:
    for asked, field in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await running.openai.post("/chat/completions", body={"model": MODEL, "messages": [USER], **asked}, cast_to=object)
        assert refused.value.param == field, asked
        assert field in refused.value.message
