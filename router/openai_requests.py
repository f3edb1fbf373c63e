"""OpenAI's request bodies, exactly as far as they are honoured.

What the API knows and this server does not do is refused by name unless it is at the value that asks for nothing; so nothing
a client relies on is ignored in silence. Types are strict: "1" is not 1, and true is not 1.
Source: OpenAI's API reference (chat completions, completions) and, for the sampling extensions, vLLM's.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from protocol.errors import InvalidRequest
from protocol.sampling import MAX_LOGPROBS

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024

RoleName = Literal["system", "developer", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(RoleName)
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
Prompt = str | list[TokenId] | list[str] | list[list[TokenId]]

_HARMLESS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
"""They change no answer: accepted and not used."""

_NO_OPS: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}
"""Known and not done: refused unless null or one of these values, which ask for nothing."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None


class SamplingFields(BaseModel):
    """What both endpoints share. None: the model's default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if not _asks_for_nothing(cls, name, value)}

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def answer_limit(self) -> int | None:
        return self.max_tokens

    @property
    def logprobs_count(self) -> int | None:
        """How many likeliest tokens to list beside the chosen one; None for no logprobs."""
        raise NotImplementedError

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of text. `content` may come in parts, which are joined."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: RoleName
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        # The openai client sends an answer back as it came: with refusal, tool_calls and the like as null.
        if not isinstance(message, dict):
            return message
        empty = {"refusal", "tool_calls", "function_call", "audio", "annotations"}
        return {name: value for name, value in message.items() if not (name in empty and not value)}

    def for_template(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        return message if self.name is None else {**message, "name": self.name}


class ChatRequest(SamplingFields):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def answer_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprobs_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        return self


class CompletionRequest(SamplingFields):
    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def logprobs_count(self) -> int | None:
        return self.logprobs

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: Prompt) -> Prompt:
        """A list of one prompt is that prompt; of several it is refused."""
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise InvalidRequest(
                    f"prompt: a batch of {len(prompt)} prompts is not supported; send one request each", "prompt"
                )
            return prompt[0]
        return prompt


AnyRequest = TypeVar("AnyRequest", ChatRequest, CompletionRequest)


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """The request in an HTTP body. Raises InvalidRequest naming the first field that is wrong."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _named(error) from error


def _asks_for_nothing(kind: type[SamplingFields], name: str, value: Any) -> bool:
    if name in kind.model_fields:
        return value is None and not kind.model_fields[name].is_required()
    if name in _HARMLESS:
        return True
    if name in _NO_OPS and (value is None or any(value == no_op and type(value) is type(no_op) for no_op in _NO_OPS[name])):
        return True
    if name in _NO_OPS:
        raise InvalidRequest(f"{name} is not supported by this server", name)
    return False


def _named(error: ValidationError) -> InvalidRequest:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # A union reports every member's complaint; the one that got furthest is the one that was meant.
    first = max((each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]), key=lambda each: len(each["loc"]))
    if first["type"] == "extra_forbidden":
        field = str(first["loc"][-1])[:64]
        return InvalidRequest(f"unrecognised request argument: {field}", field)
    # Pydantic's path also names members of unions, which are no fields.
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in first["loc"]
        if part in _FIELDS or isinstance(part, int)
    ]
    field = "".join(parts).removeprefix(".")
    return InvalidRequest(f"{field}: {first['msg']}", field)


_FIELDS = {name for kind in (ChatRequest, CompletionRequest, Message, TextPart, StreamOptions) for name in kind.model_fields}
