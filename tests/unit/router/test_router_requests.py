"""Bodies: what is honoured, what is refused, and that a refusal names the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol import cluster_pb2, serval_pb2
from protocol.errors import InvalidRequest
from protocol.ids import draw_incarnation
from router.admission import Admission
from router.config import RouterConfig
from router.grpc.admission import GrpcAdmission
from router.model import ModelInfo
from router.openai.parse import parse
from router.openai.requests import ChatRequest, CompletionRequest, SamplingFields
from router.session import session_in
from router.text.tokenizer import TextTokenizer
from router.workers import Membership
from telemetry.metrics import Metrics
from tests.integration.router_support import CONTEXT, MODEL, byte_level_tokenizer, write_model_folder

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "the stop"}]}
COMPLETION = {"model": MODEL, "prompt": "the stop"}
VOCABULARY = byte_level_tokenizer().get_vocab_size()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def members() -> Membership:
    return Membership(cluster_pb2.Peer(name="router-0"), MODEL, Metrics("router", "router-0"))


@pytest.fixture
def admission(folder: Path, members: Membership) -> Admission:
    config = RouterConfig(model=MODEL, model_dir=folder)
    return Admission(config, ModelInfo.from_folder(MODEL, folder), TextTokenizer.from_folder(folder), members)


@pytest.fixture
def grpc_admission(folder: Path, admission: Admission) -> GrpcAdmission:
    return GrpcAdmission(admission, ModelInfo.from_folder(MODEL, folder), TextTokenizer.from_folder(folder))


def saying(message: serval_pb2.ChatMessage) -> serval_pb2.GenerateRequest:
    return serval_pb2.GenerateRequest(chat=serval_pb2.Chat(messages=[message]))


def structured(**kind: Any) -> serval_pb2.Sampling:
    return serval_pb2.Sampling(structured_output=serval_pb2.StructuredOutput(**kind))


async def admit(admission: Admission, kind: type[Any], body: dict[str, Any]) -> Any:
    request = parse(kind, json.dumps(body).encode())
    call = await (admission.chat(request) if kind is ChatRequest else admission.completion(request))
    assert (len(call.prompts), call.n) == (1, 1)
    return call.prompts[0]


def schema_format(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


BAD_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": "other"}, "model"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": CONTEXT}, "max_tokens"),
    ({"max_tokens": 2**70}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**32}, "top_k"),
    ({"top_k": 1.0}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, "logit_bias"),
    ({"logit_bias": {str(VOCABULARY): 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"min_tokens": CONTEXT}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "x" * 1025}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": "1"}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"suffix": "x"}, "suffix"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": schema_format({"type": "strin"})}, "response_format"),
    ({"response_format": schema_format({"not": {}})}, "response_format"),
    ({"response_format": schema_format(False)}, "response_format"),
    ({"response_format": schema_format({"enum": ["x" * 70000]})}, "response_format"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": [""]}, "guided_choice[0]"),
    ({"guided_grammar": "start: x"}, "guided_grammar"),
    ({"ebnf": "::="}, "ebnf"),
    ({"structured_outputs": {"regex": "(?=x)"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream_options": {"nonsense": 1}}, "stream_options.nonsense"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"nonsense": 1}, "nonsense"),
    ({"nonsense": None}, "nonsense"),
]
BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"echo": True}, "echo"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x" * 2 * CONTEXT}]}, "messages"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": CONTEXT}, "max_completion_tokens"),
    ({"max_completion_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ({"prompt": "x"}, "prompt"),
]
BAD_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [VOCABULARY]}, "prompt"),
    ({"prompt": [2**40]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [[1], [VOCABULARY]]}, "prompt"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": "x" * CONTEXT}, "prompt"),
    ({"prompt": [1] * CONTEXT}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"messages": []}, "messages"),
    ({"max_completion_tokens": 1}, "max_completion_tokens"),
]


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [(ChatRequest, *case) for case in BAD_BOTH + BAD_CHAT] + [(CompletionRequest, *case) for case in BAD_BOTH + BAD_COMPLETION],
)
async def test_bad_input_is_refused_and_the_field_named(
    admission: Admission, kind: type[Any], change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await admit(admission, kind, {**(CHAT if kind is ChatRequest else COMPLETION), **change})
    assert (caught.value.field or "").startswith(field)
    assert field.split("[")[0].split(".")[-1] in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 2000, b'{"model": NaN}', b'{"model": "\\ud800"}', b"null"]
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        parse(ChatRequest, body)


HARMLESS = {
    "n": 1, "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "tools": [], "tool_choice": "none",
    "parallel_tool_calls": True, "response_format": {"type": "text"}, "modalities": ["text"], "echo": False, "best_of": 1,
    "functions": None, "audio": None, "temperature": None, "stop": None, "max_tokens": None, "logprobs": None, "seed": None,
    "stream": None, "stream_options": None, "logit_bias": None, "suffix": None, "safety_identifier": "x",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), [(ChatRequest, CHAT), (CompletionRequest, COMPLETION)])
async def test_what_asks_for_nothing_is_accepted(admission: Admission, kind: type[Any], body: dict[str, Any]) -> None:
    plain = await admit(admission, kind, {**body, "seed": 1})
    assert await admit(admission, kind, {**HARMLESS, **body, "seed": 1}) == plain


async def test_everything_honoured_arrives(admission: Admission) -> None:
    asked = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": -1,
        "repetition_penalty": 1.2, "seed": 11, "max_tokens": 9, "min_tokens": 3, "ignore_eos": True,
    }  # fmt: skip
    more = {"logit_bias": {"5": -3}, "stop": ["a", "b"], "stop_token_ids": [4]}
    spec = await admit(admission, ChatRequest, {**CHAT, **asked, **more, "logprobs": True, "top_logprobs": 4})
    assert {name: getattr(spec.sampling, name) for name in asked} == asked
    assert (spec.sampling.logit_bias, spec.sampling.stop_token_ids, spec.sampling.logprobs) == ({5: -3.0}, (4,), 4)
    assert spec.stop == ("a", "b")


async def test_defaults_are_openai_s(admission: Admission) -> None:
    chat, completion = await admit(admission, ChatRequest, CHAT), await admit(admission, CompletionRequest, COMPLETION)
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.logprobs) == (1.0, 1.0, None)
    assert chat.sampling.max_tokens == CONTEXT - len(chat.prompt)
    assert completion.sampling.max_tokens == 16
    again = await admit(admission, ChatRequest, CHAT)
    assert chat.sampling.seed != again.sampling.seed, "a request without a seed must draw its own"


async def test_the_newer_name_of_max_tokens_wins(admission: Admission) -> None:
    spec = await admit(admission, ChatRequest, {**CHAT, "max_tokens": 5, "max_completion_tokens": 6})
    assert spec.sampling.max_tokens == 6


async def test_logprobs_of_zero_means_the_chosen_token_s(admission: Admission) -> None:
    assert (await admit(admission, ChatRequest, {**CHAT, "logprobs": True})).sampling.logprobs == 0
    assert (await admit(admission, CompletionRequest, {**COMPLETION, "logprobs": 0})).sampling.logprobs == 0


@pytest.mark.parametrize("prompt", [[5, 6], [[5, 6]]])
async def test_token_ids_are_a_prompt(admission: Admission, prompt: list[Any]) -> None:
    assert (await admit(admission, CompletionRequest, {**COMPLETION, "prompt": prompt})).prompt == (5, 6)


async def test_content_in_parts_is_joined_and_a_former_answer_comes_back_as_it_went(admission: Admission) -> None:
    whole = await admit(admission, ChatRequest, {**CHAT, "seed": 1})
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "stop"}]
    message = {"role": "user", "content": parts}
    assert await admit(admission, ChatRequest, {**CHAT, "seed": 1, "messages": [message]}) == whole
    answer = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None, "function_call": None}
    assert await admit(admission, ChatRequest, {**CHAT, "messages": [message, answer, message]})


async def test_the_context_is_what_the_workers_can_hold(admission: Admission, members: Membership) -> None:
    hello = cluster_pb2.Hello(
        role=cluster_pb2.ROLE_DECODE,
        peer=cluster_pb2.Peer(name="d", incarnation=draw_incarnation()),
        model=MODEL,
        block_size=16,
        kv_blocks=4,
        max_model_len=CONTEXT,
    )
    members.join(hello, now=0.0)
    assert (
        await admit(admission, CompletionRequest, {**COMPLETION, "prompt": [1] * 60, "max_tokens": 4})
    ).sampling.max_tokens == 4
    with pytest.raises(InvalidRequest, match="64 tokens"):
        await admit(admission, CompletionRequest, {**COMPLETION, "prompt": [1] * 60, "max_tokens": 5})


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (serval_pb2.GenerateRequest(), "prompt"),
        (serval_pb2.GenerateRequest(text=""), "text"),
        (serval_pb2.GenerateRequest(model="other", text="x"), "model"),
        (serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=[])), "token_ids"),
        (serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=[VOCABULARY])), "token_ids"),
        (serval_pb2.GenerateRequest(chat=serval_pb2.Chat()), "chat"),
        (saying(serval_pb2.ChatMessage(role="x")), "chat"),
        (saying(serval_pb2.ChatMessage(role="tool")), "messages[0].tool_call_id"),
        (serval_pb2.GenerateRequest(text="x", n=129), "n"),
        (serval_pb2.GenerateRequest(text="x", sampling=structured(regex="(")), "structured_output.regex"),
        (serval_pb2.GenerateRequest(text="x", sampling=structured(json_schema="{")), "structured_output.json_schema"),
        (serval_pb2.GenerateRequest(text="x", sampling=structured(json_schema="[]")), "structured_output.json_schema"),
        (serval_pb2.GenerateRequest(text="x", sampling=structured(grammar="")), "structured_output.grammar"),
        (serval_pb2.GenerateRequest(text="x", stop=[""]), "stop"),
        (serval_pb2.GenerateRequest(text="x", stop=["a"] * 17), "stop"),
        (serval_pb2.GenerateRequest(text="x", sampling=serval_pb2.Sampling(max_tokens=0)), "max_tokens"),
        (serval_pb2.GenerateRequest(text="x", sampling=serval_pb2.Sampling(max_tokens=CONTEXT)), "max_tokens"),
        (serval_pb2.GenerateRequest(text="x", sampling=serval_pb2.Sampling(temperature=float("nan"))), "temperature"),
        (serval_pb2.GenerateRequest(text="x", sampling=serval_pb2.Sampling(presence_penalty=9)), "presence_penalty"),
    ],
)
async def test_grpc_refuses_by_the_same_rules(
    grpc_admission: GrpcAdmission, request_: serval_pb2.GenerateRequest, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await grpc_admission.generate(request_)
    assert caught.value.field == field
    assert field in str(caught.value)


async def test_grpc_and_http_ask_for_the_same(admission: Admission, grpc_admission: GrpcAdmission) -> None:
    sampling = serval_pb2.Sampling(seed=5, max_tokens=7, temperature=0.5)
    chat = serval_pb2.Chat(messages=[serval_pb2.ChatMessage(role="user", content="the stop")])
    sampling.structured_output.json_schema = '{"type": "integer"}'
    over_grpc = await grpc_admission.generate(serval_pb2.GenerateRequest(chat=chat, sampling=sampling, stop=["x"], n=3))
    response_format = schema_format({"type": "integer"})
    body = {**CHAT, "seed": 5, "max_tokens": 7, "temperature": 0.5, "stop": "x", "n": 3, "response_format": response_format}
    assert over_grpc == await admission.chat(parse(ChatRequest, json.dumps(body).encode()))


def test_what_names_a_session_counts_in_its_order() -> None:
    everything = {"prompt_cache_key": "key", "user": "me"}
    given = session_in({"session-id": "last", "x-session-id": "second", "x-serval-session": "first"})
    assert given == "first" and session_in({"x-smg-routing-key": "", "session-id": "last"}) == "last"
    asked = [{**CHAT, **named} for named in (everything, {"user": "me"}, {})]
    requests = [parse(ChatRequest, json.dumps(body).encode()) for body in asked]
    assert [request.session(given) for request in requests] == ["key", "first", "first"]
    assert [request.session(session_in({})) for request in requests] == ["key", "me", ""]


def test_what_every_endpoint_has_to_say_itself_cannot_be_left_out() -> None:
    class Forgetful(SamplingFields):
        """An endpoint's body that does not say how logprobs are asked for."""

    with pytest.raises(TypeError, match="logprobs_count"):
        Forgetful(model=MODEL)  # type: ignore[abstract]
