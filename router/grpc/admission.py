"""From a gRPC request to the same validated Call that its HTTP twin becomes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from protocol import serval_pb2
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from router.admission import Admission, drawn_seed
from router.calls import Call
from router.grpc.tools import grpc_tool_choice, grpc_tools
from router.model import ModelInfo
from router.openai.messages import ROLES
from router.openai.parse import validated
from router.openai.requests import MAX_STOP_LENGTH, MAX_STOP_STRINGS, ChatMessages
from router.request import GenerateSpec
from router.structured_output import Structure, grammar_of
from router.text.tokenizer import TextTokenizer
from router.tool_calls.plan import ToolPlan


class GrpcAdmission:
    """Reads serval.v1's messages; the rules are Admission's. Raises InvalidRequest naming the field."""

    def __init__(self, admission: Admission, model: ModelInfo, tokenizer: TextTokenizer) -> None:
        self._admission = admission
        self._model = model
        self._tokenizer = tokenizer

    async def generate(self, request: serval_pb2.GenerateRequest, session: str = "") -> Call:
        """`session`: what the client calls several requests that belong together."""
        self._admission.check_model(request.model)
        is_prompt_only = request.echo and request.sampling.HasField("max_tokens") and request.sampling.max_tokens == 0
        limit = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else None
        limit = 1 if is_prompt_only else limit
        sampling = self._sampling(request.sampling, limit)
        _check_stop(request.stop)
        n = self._admission.count(request.n, 1)
        field = request.WhichOneof("prompt") or "prompt"
        structure = _structure(request.sampling.structured_output)
        plan = await self._plan(request.chat, structure)
        sampling = replace(sampling, grammar=plan.grammar if plan.tools else await grammar_of(structure))
        prompt = await self._prompt(request, plan)
        spec = GenerateSpec(
            tuple(prompt),
            sampling,
            tuple(request.stop),
            is_prompt_only=is_prompt_only,
            session=session,
            shown_tokens=plan.shown_tokens,
        )
        if request.echo:
            spec = replace(spec, echo=request.text or self._tokenizer.decode(prompt))
        return Call((self._admission.fit(spec, field, limit, None),), n, plan)

    async def tokenize(self, request: serval_pb2.TokenizeRequest) -> list[int]:
        self._admission.check_model(request.model)
        match request.WhichOneof("prompt"):
            case "text":
                special = request.add_special_tokens if request.HasField("add_special_tokens") else True
                return await self._tokenizer.encode(request.text, self._model.max_model_len, special)
            case "chat":
                return await self._chat_tokens(request.chat, await self._plan(request.chat, None))
            case _:
                raise InvalidRequest("prompt: one of text and chat must be set", "prompt")

    async def _plan(self, chat: serval_pb2.Chat, structure: Structure | None) -> ToolPlan:
        parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else None
        return await self._admission.tools.plan(grpc_tools(chat), grpc_tool_choice(chat), parallel, structure)

    async def _chat_tokens(self, chat: serval_pb2.Chat, plan: ToolPlan) -> list[int]:
        messages = [message.for_template() for message in _messages(chat)]
        return await self._admission.chat_tokens(messages, plan)

    async def _prompt(self, request: serval_pb2.GenerateRequest, plan: ToolPlan) -> list[int]:
        kind = request.WhichOneof("prompt")
        if kind == "chat":
            return await self._chat_tokens(request.chat, plan)
        if kind is None:
            raise InvalidRequest("prompt: one of text, token_ids and chat must be set", "prompt")
        return await self._admission.tokens(request.text if kind == "text" else list(request.token_ids.ids), kind)

    def _sampling(self, given: serval_pb2.Sampling, limit: int | None) -> SamplingParams:
        sampling = SamplingParams.from_proto(given, self._model.max_model_len, drawn_seed(None))
        defaults = self._model.defaults
        sampling = replace(
            sampling,
            temperature=sampling.temperature if given.HasField("temperature") else defaults.temperature,
            top_p=sampling.top_p if given.HasField("top_p") else defaults.top_p,
            repetition_penalty=sampling.repetition_penalty
            if given.HasField("repetition_penalty")
            else defaults.repetition_penalty,
            max_tokens=sampling.max_tokens if limit is None else limit,
            grammar="",
        )
        sampling.validate(self._model.vocab_size)
        return sampling


def _structure(asked: serval_pb2.StructuredOutput) -> Structure | None:
    field = "structured_output"
    match asked.WhichOneof("kind"):
        case "json_object":
            return Structure("json_schema", {"type": "object"}, f"{field}.json_object") if asked.json_object else None
        case "json_schema":
            return Structure("json_schema", asked.json_schema, f"{field}.json_schema")
        case "regex":
            return Structure("regex", asked.regex, f"{field}.regex")
        case "grammar":
            return Structure("grammar", asked.grammar, f"{field}.grammar")
        case _:
            return None


def _messages(chat: serval_pb2.Chat) -> Sequence[Any]:
    """The same rules as over HTTP say what the template sees."""
    if not chat.messages:
        raise InvalidRequest("chat must have a message", "chat")
    for message in chat.messages:
        if message.role not in ROLES:
            raise InvalidRequest(f"chat: role {message.role[:32]!r} is none of {', '.join(ROLES)}", "chat")
    return validated(ChatMessages, {"messages": [_as_openai(message) for message in chat.messages]}).messages


def _as_openai(message: serval_pb2.ChatMessage) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
        for call in message.tool_calls
    ]
    optional = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": calls}
    content = None if calls and not message.content else message.content
    return {"role": message.role, "content": content} | {name: value for name, value in optional.items() if value}


def _check_stop(stop: Sequence[str]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop: at most {MAX_STOP_STRINGS} strings", "stop")
    if any(not 0 < len(each) <= MAX_STOP_LENGTH for each in stop):
        raise InvalidRequest(f"stop: each string must have 1 to {MAX_STOP_LENGTH} characters", "stop")
