"""The items of a /v1/responses input, and the chat messages that they are.

Source: OpenAI's API reference (responses). Items may be given back as they came: nulls, ids and states are not looked at.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from router.openai.messages import (
    AssistantMessage,
    FunctionCall,
    Message,
    MessageToolCall,
    SystemMessage,
    ToolMessage,
    UserMessage,
)

Status = Literal["in_progress", "completed", "incomplete"]


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, item: Any) -> Any:
        return {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else item


class ContentPart(Item):
    """Text of the user or of the model. What an earlier answer said of its text is not used."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusalPart(Item):
    type: Literal["refusal"]
    refusal: str


Content = str | list[Annotated[ContentPart | RefusalPart, Field(discriminator="type")]]


class MessageItem(Item):
    type: Literal["message"] | None = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: str | None = Field(default=None, description="Accepted; not used.")

    def message(self) -> Message:
        text = _text(self.content)
        if self.role == "user":
            return UserMessage(role="user", content=text)
        if self.role == "assistant":
            return AssistantMessage(role="assistant", content=text)
        return SystemMessage(role=self.role, content=text)


class FunctionCallItem(Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    arguments: str
    id: str | None = None
    status: Status | None = None

    def call(self) -> MessageToolCall:
        return MessageToolCall(id=self.call_id, function=FunctionCall(name=self.name, arguments=self.arguments))


class FunctionCallOutputItem(Item):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1)]
    output: Content
    id: str | None = None
    status: Status | None = None

    def message(self) -> Message:
        return ToolMessage(role="tool", tool_call_id=self.call_id, content=_text(self.output))


def _type_of(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")],
    Discriminator(_type_of),
]


def messages_of(instructions: str | None, given: str | Sequence[InputItem]) -> list[Message]:
    """Calls that follow the assistant's text, or each other, are one message with it."""
    messages: list[Message] = [SystemMessage(role="system", content=instructions)] if instructions is not None else []
    if isinstance(given, str):
        return [*messages, UserMessage(role="user", content=given)]
    for item in given:
        last = messages[-1] if messages else None
        if not isinstance(item, FunctionCallItem):
            messages.append(item.message())
        elif isinstance(last, AssistantMessage):
            calls = [*(last.tool_calls or []), item.call()]
            messages[-1] = last.model_copy(update={"tool_calls": calls})
        else:
            messages.append(AssistantMessage(role="assistant", tool_calls=[item.call()]))
    return messages


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)
