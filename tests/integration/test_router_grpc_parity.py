"""What the HTTP front can do, over gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from protocol import serval_pb2, serval_pb2_grpc
from tests.integration.router_support import (
    CONTEXT,
    EOS,
    WAIT_S,
    Cluster,
    byte_level_tokenizer,
    cluster,
    positional_answer,
    write_model_folder,
)

TEXT = "the stop and the wörld 😀 go on "
TOKENIZER = byte_level_tokenizer()
LONG = 2000
SCHEMA = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CALL = 'Well. <tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
USER = serval_pb2.ChatMessage(role="user", content="hi")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(write_model_folder(tmp_path), max_model_len=LONG) as one, one.worker("prefill"):
        yield one


def stub(running: Cluster) -> Any:
    return serval_pb2_grpc.ServalStub(running.channel)


async def generate(running: Cluster, **request: Any) -> list[serval_pb2.GenerateResponse]:
    sampling = serval_pb2.Sampling(**{"max_tokens": 12, **request.pop("sampling", {})})
    call = stub(running).Generate(serval_pb2.GenerateRequest(sampling=sampling, **request), timeout=WAIT_S)
    return [response async for response in call]


def worker(running: Cluster, text: str) -> Any:
    tokens = TOKENIZER.encode(text + EOS).ids
    return running.worker(answer=lambda submit: tokens, max_model_len=LONG, kv_blocks=200)


async def test_n_answers_each_with_its_finish_and_figures(running: Cluster) -> None:
    async with running.worker(answer=lambda submit: TOKENIZER.encode("abcdef"[: 3 + submit.sampling.seed % 7]).ids):
        responses = await generate(running, text="x", n=3, sampling={"seed": 7})
    texts = {index: "".join(each.text for each in responses if each.index == index) for index in range(3)}
    assert texts == {0: "abc", 1: "abcd", 2: "abcde"}
    finishes = {each.index: each.finish for each in responses if each.HasField("finish")}
    assert [finishes[index].usage.completion_tokens for index in range(3)] == [3, 4, 5]
    for finish in finishes.values():
        assert finish.figures.ttft_s > 0
        assert (finish.figures.decode_worker, finish.figures.prefill_worker) == ("decode-0", "prefill-0")


async def test_echo_and_prompt_logprobs_come_with_the_first_message(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        responses = await generate(running, text="the stop", echo=True, sampling={"prompt_logprobs": 1, "max_tokens": 3})
        alone = await generate(running, text="the stop", echo=True, sampling={"prompt_logprobs": 0, "max_tokens": 0})
    assert responses[0].text.startswith("the stop")
    listed = responses[0].prompt_logprobs
    assert TOKENIZER.decode([each.chosen.token_id for each in listed]) == "the stop"
    assert [len(each.top) for each in listed] == [0] + [1] * (len(listed) - 1)
    assert not any(each.prompt_logprobs for each in responses[1:])
    assert "".join(each.text for each in alone) == "the stop"
    assert (alone[-1].finish.usage.completion_tokens, [*alone[-1].token_ids]) == (0, [])
    assert alone[-1].finish.reason == serval_pb2.FINISH_REASON_LENGTH


async def test_tools_and_structured_output(running: Cluster) -> None:
    tool = serval_pb2.Tool(name="weather", parameters_json=SCHEMA)
    async with worker(running, CALL) as decode:
        responses = await generate(running, chat=serval_pb2.Chat(messages=[USER], tools=[tool]), sampling={"max_tokens": 200})
        assert "".join(each.text for each in responses) == "Well."
        deltas = [delta for each in responses for delta in each.tool_calls]
        assert [delta.name for delta in deltas if delta.name] == ["weather"]
        assert json.loads("".join(delta.arguments for delta in deltas)) == {"city": "Köln"}
        assert responses[-1].finish.reason == serval_pb2.FINISH_REASON_TOOL_CALLS

        forced = serval_pb2.Chat(messages=[USER], tools=[tool], tool_choice=serval_pb2.ToolChoice(function="weather"))
        told = serval_pb2.ToolCall(id=deltas[0].id, name="weather", arguments_json='{"city": "Köln"}')
        forced.messages.add(role="assistant", tool_calls=[told])
        forced.messages.add(role="tool", tool_call_id=deltas[0].id, content="rain")
        await generate(running, chat=forced)
        assert decode.submits[-1].sampling.structured_output.grammar
        await generate(running, text="x", sampling={"structured_output": serval_pb2.StructuredOutput(json_schema=SCHEMA)})
        assert "city" in decode.submits[-1].sampling.structured_output.grammar


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (serval_pb2.Chat(messages=[USER], tools=[serval_pb2.Tool(name="two words")]), "name"),
        (serval_pb2.Chat(messages=[USER], tools=[serval_pb2.Tool(name="f", parameters_json="{")]), "parameters_json"),
        (serval_pb2.Chat(messages=[USER], tools=[serval_pb2.Tool(name="f", parameters_json="[]")]), "parameters"),
        (serval_pb2.Chat(messages=[USER], tool_choice=serval_pb2.ToolChoice(function="f")), "tool_choice"),
        (serval_pb2.Chat(messages=[USER], tool_choice=serval_pb2.ToolChoice(mode=9)), "tool_choice"),  # type: ignore[arg-type]
    ],
)
async def test_wrong_tools_are_named(running: Cluster, chat: serval_pb2.Chat, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=field) as refused:
        await generate(running, chat=chat)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokens_and_back(running: Cluster) -> None:
    tokenized = await stub(running).Tokenize(serval_pb2.TokenizeRequest(text="the wörld"), timeout=WAIT_S)
    assert (list(tokenized.token_ids), tokenized.max_model_len) == (TOKENIZER.encode("the wörld").ids, LONG)
    request = serval_pb2.DetokenizeRequest(token_ids=tokenized.token_ids)
    assert (await stub(running).Detokenize(request, timeout=WAIT_S)).text == "the wörld"
    chat = serval_pb2.TokenizeRequest(chat=serval_pb2.Chat(messages=[USER]))
    over_http = await running.http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})
    assert list((await stub(running).Tokenize(chat, timeout=WAIT_S)).token_ids) == over_http.json()["tokens"]
    for wrong in (serval_pb2.DetokenizeRequest(token_ids=[CONTEXT * 1000]), serval_pb2.DetokenizeRequest(model="other")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(running).Detokenize(wrong, timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_one_failed_answer_ends_the_call(running: Cluster) -> None:
    async with running.worker() as decode:
        asking = asyncio.create_task(generate(running, text="x", n=2))
        first = await decode.next_submit()
        decode.say_tokens(first.request, TOKENIZER.encode("ab").ids)
        second = await decode.next_submit()
        decode.say_ended(second.request, "internal", "broken")
        with pytest.raises(grpc.aio.AioRpcError, match="broken") as failed:
            await asking
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert await decode.next_cancel() == first.request


async def test_why_it_was_placed_there_is_told_on_request(running: Cluster) -> None:
    async with running.worker(answer=positional_answer(TEXT)):
        for metadata, is_told in (((), False), ((("x-serval-debug", "1"),), True)):
            call = stub(running).Generate(serval_pb2.GenerateRequest(text="x"), timeout=WAIT_S, metadata=metadata)
            assert "x-serval-decode-worker" in (headers := dict(await call.initial_metadata()))
            assert ("x-serval-placement" in headers) == is_told
            assert not is_told or isinstance(json.loads(headers["x-serval-placement"]), dict)


def test_the_documented_client_prints_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = documented_client()
    assert len(lines) <= 10

    async def scenario() -> None:
        async with cluster(write_model_folder(tmp_path)) as one, one.worker(answer=positional_answer(TEXT)):
            code = "\n".join(lines).replace("127.0.0.1:8001", f"127.0.0.1:{one.ports.grpc}")
            await asyncio.wait_for(asyncio.to_thread(exec, code, {}), WAIT_S)

    asyncio.run(scenario())
    assert "the" in capsys.readouterr().out


def documented_client() -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    block = next(block for block in text.split("```") if block.startswith("python\nimport grpc"))
    return block.strip().splitlines()[1:]
