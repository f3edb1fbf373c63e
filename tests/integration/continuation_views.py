"""What a client has at the end of an answer, however many pieces it came in; without what no two calls share. Each `ask_*` also
asserts what holds of any stream: one first delta, one finish reason, calls that begin once, events in order."""

import json
from collections.abc import Sequence
from typing import Any

import grpc.aio
import httpx
import pytest

from protocol import serval_pb2, serval_pb2_grpc
from tests.integration.continuation_support import MODEL
from tests.integration.router_support import WAIT_S

Json = dict[str, Any]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TOLERANCE = 1e-4
"""Of a logprob in float32 between a token that a step computed and the same one computed with a prompt."""


async def ask_http(http: httpx.AsyncClient, path: str, body: Json, stream: bool) -> Json:
    """Either of OpenAI's endpoints with choices. `body` may name another model than these tests' own."""
    body = {"model": MODEL, **body, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    if stream:
        return _joined(_events(response.text))
    whole = response.json()
    return {"choices": [_whole(choice) for choice in whole["choices"]], "usage": _usage(whole["usage"])}


async def ask_responses(http: httpx.AsyncClient, body: Json) -> Json:
    """A stream of /v1/responses: the deltas, and the response that it ends with."""
    response = await http.post("/v1/responses", json={"model": MODEL, **body, "stream": True})
    assert response.status_code == 200, response.text
    events = [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    pieces: Json = {}
    for event in events:
        if event["type"].endswith(".delta"):
            pieces[event["output_index"]] = pieces.get(event["output_index"], "") + event["delta"]
    last = events[-1]["response"]
    output = [{key: item.get(key) for key in ("type", "status", "content", "name", "arguments")} for item in last["output"]]
    once = [kind for kind in kinds if not kind.endswith(".delta")]
    usage = {name: last["usage"][name] for name in ("input_tokens", "output_tokens", "total_tokens")}
    return {"kinds": once, "pieces": pieces, "output": output, "usage": usage}


async def ask_grpc(channel: grpc.aio.Channel, request: serval_pb2.GenerateRequest) -> Json:
    choices: dict[int, Json] = {}
    async for message in serval_pb2_grpc.ServalStub(channel).Generate(request, timeout=WAIT_S):
        empty = {"token_ids": [], "text": "", "logprobs": [], "prompt_logprobs": [], "finish": []}
        choice = choices.setdefault(message.index, empty)
        choice["token_ids"] += message.token_ids
        choice["text"] += message.text
        choice["logprobs"] += [_of_proto(one) for one in message.logprobs]
        choice["prompt_logprobs"] += [_of_proto(one) for one in message.prompt_logprobs]
        if message.HasField("finish"):
            usage = message.finish.usage
            choice["finish"].append((message.finish.reason, usage.prompt_tokens, usage.completion_tokens))
    for choice in choices.values():
        assert len(choice["finish"]) == 1, "an answer ends once"
    return {"choices": [choices[index] for index in sorted(choices)]}


def _events(text: str) -> list[Json]:
    *events, done = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert done == "[DONE]", done
    return [json.loads(event) for event in events]


def _joined(events: Sequence[Json]) -> Json:
    *chunks, last = events
    assert last["choices"] == []
    choices: dict[int, Json] = {}
    for chunk in chunks:
        assert chunk["usage"] is None, "usage is said once"
        for choice in chunk["choices"]:
            empty: Json = {"text": "", "roles": [], "finish": [], "logprobs": [], "calls": [], "ids": []}
            _join(choices.setdefault(choice["index"], empty), choice)
    for joined in choices.values():
        ids, roles = joined.pop("ids"), joined.pop("roles")
        assert len(set(ids)) == len(ids)
        assert len(joined["finish"]) == 1, "one finish reason"
        assert len(roles) <= 1, "one first delta"
        joined["finish"] = joined["finish"][0]
    return {"choices": [choices[index] for index in sorted(choices)], "usage": _usage(last["usage"])}


def _join(joined: Json, choice: Json) -> None:
    said = choice.get("delta", choice)
    joined["text"] += said.get("text") or said.get("content") or ""
    joined["roles"] += [said["role"]] if "role" in said else []
    joined["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    joined["logprobs"] += _logprobs(choice["logprobs"])
    for call in said.get("tool_calls", ()):
        if "id" in call:
            assert call["index"] == len(joined["calls"]), "a call begins once"
            joined["ids"].append(call["id"])
            joined["calls"].append({"name": call["function"]["name"], "arguments": ""})
        joined["calls"][call["index"]]["arguments"] += call["function"]["arguments"]


def _whole(choice: Json) -> Json:
    message = choice.get("message", choice)
    calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message.get("tool_calls", ())]
    text = message.get("text") or message.get("content") or ""
    view = {"text": text, "finish": choice["finish_reason"], "logprobs": _logprobs(choice["logprobs"]), "calls": calls}
    if choice.get("prompt_logprobs"):
        view["prompt_logprobs"] = [
            None if one is None else {token: _near(top["logprob"]) for token, top in one.items()}
            for one in choice["prompt_logprobs"]
        ]
    return view


def _usage(usage: Json) -> Json:
    """What was cached differs: whoever goes on may know the prompt already."""
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def _logprobs(given: Json | None) -> list[Any]:
    """One entry per token, in either endpoint's words."""
    if given is None:
        return []
    if "content" in given:
        return [
            [(one["token"], one["bytes"], _near(one["logprob"])) for one in (token, *token["top_logprobs"])]
            for token in given["content"]
        ]
    return [
        (token, offset, _near(own), None if top is None else {text: _near(value) for text, value in top.items()})
        for token, offset, own, top in zip(
            given["tokens"], given["text_offset"], given["token_logprobs"], given["top_logprobs"], strict=True
        )
    ]


def _of_proto(token: serval_pb2.TokenLogprobs) -> Any:
    return [(one.token_id, _near(one.logprob)) for one in (token.chosen, *token.top)]


def _near(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, abs=TOLERANCE)
