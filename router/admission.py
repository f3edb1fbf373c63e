"""From a client's words, HTTP's or gRPC's, to a validated GenerateSpec."""

import secrets
from dataclasses import replace
from typing import Any

from protocol import serval_pb2
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from router.model import ModelInfo
from router.openai_requests import (
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    ROLES,
    ChatRequest,
    CompletionRequest,
    Message,
    SamplingFields,
)
from router.request import GenerateSpec
from router.tokenizer import TextTokenizer
from router.workers import Membership

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat answer may fill the context."""

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
)


class Admission:
    """Tokenises and checks. Raises InvalidRequest, naming the field, for what can never be served."""

    def __init__(self, model: ModelInfo, tokenizer: TextTokenizer, members: Membership) -> None:
        self._members = members
        self._model = model
        self._tokenizer = tokenizer

    async def chat(self, request: ChatRequest) -> GenerateSpec:
        sampling = self._sampling(request)
        self._check_model(request.model)
        messages = [message.for_template() for message in request.messages]
        prompt = await self._tokenizer.encode_chat(messages, self._model.max_model_len)
        limit = request.answer_limit if request.answer_limit is not None else self._model.default_max_tokens
        return self._spec(prompt, "messages", sampling, limit, request.answer_limit is not None, request.stop_strings)

    async def completion(self, request: CompletionRequest) -> GenerateSpec:
        sampling = self._sampling(request)
        self._check_model(request.model)
        prompt = await self._tokens(request.prompt)
        limit = COMPLETION_MAX_TOKENS if request.answer_limit is None else request.answer_limit
        return self._spec(prompt, "prompt", sampling, limit, request.answer_limit is not None, request.stop_strings)

    async def grpc(self, request: serval_pb2.GenerateRequest) -> GenerateSpec:
        if request.model:
            self._check_model(request.model)
        given = request.sampling
        limit = given.max_tokens if given.HasField("max_tokens") else None
        sampling = self._grpc_sampling(given)
        _check_stop(request.stop)
        kind = request.WhichOneof("prompt")
        if kind == "chat":
            prompt = await self._tokenizer.encode_chat(_messages(request.chat), self._model.max_model_len)
        elif kind is not None:
            prompt = await self._tokens(request.text if kind == "text" else list(request.token_ids.ids), kind)
        else:
            raise InvalidRequest("prompt: one of text, token_ids and chat must be set", "prompt")
        return self._spec(prompt, kind, sampling, limit, limit is not None, tuple(request.stop))

    async def _tokens(self, prompt: Any, field: str = "prompt") -> list[int]:
        if not prompt:
            raise InvalidRequest(f"{field} is empty", field)
        if isinstance(prompt, str):
            return await self._tokenizer.encode(prompt, self._model.max_model_len)
        for token_id in prompt:
            if token_id >= self._model.vocab_size:
                raise InvalidRequest(f"{field}: token id {token_id} is not in the vocabulary", field)
        return list(prompt)

    def _check_model(self, model: str) -> None:
        if model != self._model.name:
            raise InvalidRequest(f"the model {model[:64]!r} does not exist; this server has {self._model.name!r}", "model")

    def _sampling(self, request: SamplingFields) -> SamplingParams:
        """Everything but max_tokens, which depends on the prompt; validated, so that bad input costs no tokenisation."""
        given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
        if given.get("top_k") == -1:  # vLLM's word for "off"
            given["top_k"] = 0
        sampling = replace(
            self._model.defaults,
            **given,
            logit_bias=_logit_bias(request.logit_bias or {}),
            seed=_seed(request.seed),
            logprobs=request.logprobs_count,
            stop_token_ids=tuple(request.stop_token_ids or ()),
            max_tokens=_limit(request.answer_limit, self._model),
        )
        sampling.validate(self._model.vocab_size)
        return sampling

    def _grpc_sampling(self, given: serval_pb2.Sampling) -> SamplingParams:
        limit = given.max_tokens if given.HasField("max_tokens") else None
        sampling = SamplingParams.from_proto(given, _limit(limit, self._model), _seed(None))
        absent = {
            name: getattr(self._model.defaults, name)
            for name in ("temperature", "top_p", "repetition_penalty")
            if not given.HasField(name)
        }
        sampling = replace(sampling, **absent)
        sampling.validate(self._model.vocab_size)
        return sampling

    def _spec(
        self,
        prompt: list[int],
        field: str,
        sampling: SamplingParams,
        limit: int | None,
        limit_is_asked_for: bool,
        stop: tuple[str, ...],
    ) -> GenerateSpec:
        context = self._members.context_limit(self._model.max_model_len)
        room = context - len(prompt)
        if not prompt:
            raise InvalidRequest(f"{field} is empty", field)
        if room < 1:
            raise InvalidRequest(
                f"{field}: {len(prompt)} tokens leave no room for an answer in the context of {context} tokens", field
            )
        if limit_is_asked_for and limit is not None and limit > room:
            raise InvalidRequest(
                f"max_tokens: the context has {context} tokens; {len(prompt)} of the prompt and {limit} of the answer are more",
                "max_tokens",
            )
        sampling = replace(sampling, max_tokens=min(limit or room, room))
        sampling.validate(self._model.vocab_size)
        return GenerateSpec(tuple(prompt), sampling, stop)


def _messages(chat: serval_pb2.Chat) -> list[dict[str, str]]:
    if not chat.messages:
        raise InvalidRequest("chat must have a message", "chat")
    for message in chat.messages:
        if message.role not in ROLES:
            raise InvalidRequest(f"chat: role {message.role[:32]!r} is none of {', '.join(ROLES)}", "chat")
    # The same rules as over HTTP say what the template sees.
    checked = [Message.model_validate({"role": each.role, "content": each.content}) for each in chat.messages]
    return [message.for_template() for message in checked]


def _limit(asked: int | None, model: ModelInfo) -> int:
    return model.max_model_len if asked is None else asked


def _seed(asked: int | None) -> int:
    """Drawn where the client gave none, so that a request which goes on at another worker stays itself."""
    return secrets.randbits(63) if asked is None else asked


def _check_stop(stop: Any) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop: at most {MAX_STOP_STRINGS} strings", "stop")
    if any(not 0 < len(each) <= MAX_STOP_LENGTH for each in stop):
        raise InvalidRequest(f"stop: each string must have 1 to {MAX_STOP_LENGTH} characters", "stop")


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit()):
            raise InvalidRequest(f"logit_bias: {key[:32]!r} is not a token id", "logit_bias")
        bias[int(key)] = value
    return bias
