"""OpenAI's chat messages, one model per role, and what the chat template sees of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

_NOTHING: tuple[Any, ...] = (None, "", [])
_EMPTY_FIELDS = ("refusal", "tool_calls", "function_call", "audio", "annotations")


class Strict(BaseModel):
    """Types are strict: "1" is not 1, and true is not 1. What is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GenerationBody(Strict):
    """A body that asks for answers."""

    stream: bool | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class _Message(Strict):
    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        # The openai client sends an answer back as it came: with refusal, tool_calls and the like as null, or empty.
        if not isinstance(message, dict):
            return message
        return {name: value for name, value in message.items() if value not in _NOTHING or name not in _EMPTY_FIELDS}


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        return _named({"role": "system", "content": _text(self.content)}, self.name)


class UserMessage(_Message):
    role: Literal["user"]
    content: Content
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        return _named({"role": self.role, "content": _text(self.content)}, self.name)


class FunctionCall(Strict):
    name: Annotated[str, Field(min_length=1)]
    arguments: str = Field(description="The text of a JSON object.")


class MessageToolCall(Strict):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(_Message):
    """What the model said before: text, tool calls or both."""

    role: Literal["assistant"]
    tool_calls: list[MessageToolCall] | None = None
    content: Annotated[Content | None, Field(validate_default=True)] = None
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: Content | None, info: ValidationInfo) -> Content | None:
        if content is None and not info.data.get("tool_calls"):
            raise ValueError("must be text where there are no tool calls")
        return content

    def for_template(self) -> dict[str, Any]:
        message = _named({"role": self.role, "content": _text(self.content or "")}, self.name)
        return message | {"tool_calls": [call.model_dump() for call in self.tool_calls]} if self.tool_calls else message


class ToolMessage(_Message):
    """What came of one tool call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(min_length=1)]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        message = {"role": self.role, "content": _text(self.content), "tool_call_id": self.tool_call_id}
        return _named(message, self.name)


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
ROLES = ("system", "developer", "user", "assistant", "tool")


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _named(message: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    return {**message, "name": name} if name else dict(message)
