"""serval.v1's tools and tool choice, by the same rules as OpenAI's over HTTP."""

from typing import Any

import orjson

from protocol import serval_pb2
from protocol.errors import InvalidRequest
from router.openai.parse import validated
from router.tool_calls.tools import FunctionDefinition, FunctionName, NamedToolChoice, Tool, ToolChoice, tool_of

_MODES: dict[int, ToolChoice | None] = {
    serval_pb2.ToolChoice.MODE_UNSPECIFIED: None,
    serval_pb2.ToolChoice.MODE_NONE: "none",
    serval_pb2.ToolChoice.MODE_AUTO: "auto",
    serval_pb2.ToolChoice.MODE_REQUIRED: "required",
}


def grpc_tools(chat: serval_pb2.Chat) -> list[Tool]:
    """Raises InvalidRequest naming the tool that is wrong."""
    return [_tool(tool, f"chat.tools[{index}]") for index, tool in enumerate(chat.tools)]


def grpc_tool_choice(chat: serval_pb2.Chat) -> ToolChoice | None:
    """None: what the model likes."""
    if not chat.HasField("tool_choice"):
        return None
    if chat.tool_choice.function:
        name = validated(FunctionName, {"name": chat.tool_choice.function})
        return NamedToolChoice(type="function", function=name)
    if chat.tool_choice.mode not in _MODES:
        raise InvalidRequest(f"tool_choice: there is no mode {chat.tool_choice.mode}", "tool_choice")
    return _MODES[chat.tool_choice.mode]


def _tool(tool: serval_pb2.Tool, place: str) -> Tool:
    definition: dict[str, Any] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    if tool.parameters_json:
        try:
            definition["parameters"] = orjson.loads(tool.parameters_json)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{place}.parameters_json is not JSON: {error}", f"{place}.parameters_json") from error
    return tool_of(validated(FunctionDefinition, definition), place)
