"""A request's tools and tool_choice, in OpenAI's words, and checked.

Source: OpenAI's API reference (chat completions). Names follow its rule; schemas are checked against llguidance where an answer is
held to them (see grammar), because a tool that is only described to the model may have a schema that no grammar can express.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import InvalidRequest

MAX_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ToolChoiceMode = Literal["none", "auto", "required"]


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FunctionDefinition(_Words):
    """`parameters` is the JSON schema of the arguments object; absent: no arguments. `strict`: arguments are held to it."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(_Words):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(_Words):
    name: ToolName


class NamedToolChoice(_Words):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = ToolChoiceMode | NamedToolChoice


@dataclass(frozen=True)
class Tool:
    """`place` is where the client wrote the function, for error messages."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False
    place: str = "tools"

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: OpenAI's words, without what is for the server alone."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def takes_text(self, argument: str) -> bool:
        """The argument is a string, so that formats without quotes write it as it is."""
        properties = self.parameters.get("properties")
        schema = properties.get(argument) if isinstance(properties, Mapping) else None
        return isinstance(schema, Mapping) and schema.get("type") == "string"


def tool_of(function: FunctionDefinition, place: str) -> Tool:
    """Raises InvalidRequest for a schema that is no schema of an object."""
    parameters = function.parameters or {"type": "object", "properties": {}}
    if parameters.get("type", "object") != "object":
        raise InvalidRequest(f"{place}.parameters: the schema must have type 'object'", f"{place}.parameters")
    if not isinstance(parameters.get("properties", {}), dict):
        raise InvalidRequest(f"{place}.parameters: 'properties' must be an object", f"{place}.parameters")
    return Tool(function.name, function.description or "", parameters, bool(function.strict), place)


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises InvalidRequest where there are too many, or two of one name."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools: at most {MAX_TOOLS}", "tools")
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise InvalidRequest(f"{tool.place}.name: there are two tools named {tool.name!r}", f"{tool.place}.name")
        names.add(tool.name)
