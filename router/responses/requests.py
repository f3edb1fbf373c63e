"""The body of /v1/responses, exactly as far as it is honoured, and the chat request that it is.

The server keeps no responses: what needs one that was kept is refused by name, and so are tools that it would have to run itself.
Source: OpenAI's API reference (responses).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from protocol.errors import InvalidRequest
from router.openai.formats import JsonSchema, JsonSchemaFormat, ResponseFormat
from router.openai.messages import GenerationBody, Strict
from router.openai.parse import validated
from router.openai.requests import ChatRequest, Count
from router.responses.input import InputItem, messages_of
from router.tool_calls.tools import FunctionDefinition, FunctionName, FunctionTool, NamedToolChoice, ToolChoiceMode, ToolName

LOGPROBS = "message.output_text.logprobs"

_STATELESS = "this server keeps no responses"
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((), _STATELESS),
    "conversation": ((), _STATELESS),
    "background": ((False,), _STATELESS),
    "store": ((False,), _STATELESS),
    "prompt": ((), _STATELESS),
    "reasoning": (({},), "it has no settings for reasoning"),
    "truncation": (("disabled",), "an input that is too long is refused"),
    "max_tool_calls": ((), "it runs no tools"),
    "context_management": (([],), "it does not shorten inputs"),
    "moderation": ((), "it has no moderation"),
}
"""Refused, unless at a value that asks for nothing; and why."""


class TextFormat(Strict):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: str | None = None
    json_schema: JsonSchema | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="Answers are held to the schema either way.")

    @model_validator(mode="after")
    def _schema_has_a_name(self) -> "TextFormat":
        if self.type == "json_schema" and (self.name is None or self.json_schema is None):
            missing = "name" if self.name is None else "schema"
            raise InvalidRequest(f"text.format.{missing} is missing", f"text.format.{missing}")
        return self


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(default=None, description="Accepted at its default alone.")


class ResponsesTool(Strict):
    """A function, as this endpoint writes it."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesToolChoice(Strict):
    type: Literal["function"]
    name: ToolName


class ResponsesStreamOptions(Strict):
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is obfuscated.")


class ResponsesRequest(GenerationBody):
    """The body of /v1/responses."""

    model: Annotated[str, Field(min_length=1)]
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    stream_options: ResponsesStreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextConfig | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: ToolChoiceMode | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Count | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    user: str | None = None
    prompt_cache_key: Annotated[str, Field(max_length=256)] | None = None
    store: Literal[False] | None = Field(default=None, description="True is refused: this server keeps no responses.")

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_refused(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name, (allowed, reason) in _REFUSED.items():
            value = body.get(name)
            if value is not None and not any(value == each and type(value) is type(each) for each in allowed):
                raise InvalidRequest(f"{name} is not supported by this server: {reason}", name)
        _check_types(body, "tools", ("function",))
        _check_types(body, "input", ("message", "function_call", "function_call_output"))
        return {name: value for name, value in body.items() if name not in _REFUSED}

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def chat(self) -> ChatRequest:
        """The same request in the words of /v1/chat/completions. Raises InvalidRequest, in those words."""
        choice = self.tool_choice
        words = {
            "model": self.model,
            "messages": messages_of(self.instructions, self.input),
            "stream": self.stream,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "response_format": _response_format(self.text.format if self.text is not None else None),
            "tools": [_chat_tool(tool) for tool in self.tools or ()] or None,
            "tool_choice": choice if not isinstance(choice, ResponsesToolChoice) else _named(choice.name),
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": self.wants_logprobs or None,
            "top_logprobs": self.top_logprobs,
            "prompt_cache_key": self.prompt_cache_key,
            "user": self.user,
        }
        return validated(ChatRequest, words)


_WORDS = (
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
)


def in_own_words(error: InvalidRequest) -> InvalidRequest:
    """An error of the chat request, naming what the client of this endpoint wrote."""
    field, message = error.field or "", str(error)
    own = field.replace(".function", "") if field.startswith("tools[") else field
    for chat, ours in _WORDS:
        if field.split("[")[0] == chat:
            own = ours
    return InvalidRequest(message.replace(field, own) if field else message, own or None)


def _check_types(body: Mapping[str, Any], field: str, known: Sequence[str]) -> None:
    """Raises InvalidRequest naming the member of a list that is of another type."""
    for index, each in enumerate(body[field] if isinstance(body.get(field), list) else ()):
        if isinstance(each, dict) and (each.get("type") or known[0]) not in known:
            place = f"{field}[{index}].type"
            raise InvalidRequest(f"{place}: {str(each['type'])[:64]!r} is not supported; only {', '.join(known)}", place)


def _chat_tool(tool: ResponsesTool) -> FunctionTool:
    function = FunctionDefinition(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return FunctionTool(type="function", function=function)


def _named(name: str) -> NamedToolChoice:
    return NamedToolChoice(type="function", function=FunctionName(name=name))


def _response_format(given: TextFormat | None) -> ResponseFormat | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return ResponseFormat(type="json_object")
    schema = {"name": given.name, "schema": given.json_schema, "strict": given.strict}
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat.model_validate(schema))
