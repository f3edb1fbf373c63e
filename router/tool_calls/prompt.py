"""Conversations with tools as chat templates expect them, which is not quite as OpenAI's API has them.

Arguments are text in the API and objects in most templates. A tool's result names its call by id; some templates want the
function's name. And a template that knows no tools gets them in a system message, in the words that Qwen's templates use:
an instruct model of any kind can then be asked for calls, if not as well as one that was trained for them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocol.errors import InvalidRequest
from router.tool_calls.formats import ToolFormat
from router.tool_calls.tools import Tool

Message = dict[str, Any]

_INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a JSON object with the function's name and arguments, as follows:
{example}"""


def has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def for_template(messages: Sequence[Mapping[str, Any]], arguments_are_text: bool) -> list[Message]:
    """Arguments as the template takes them, and names on results. Raises InvalidRequest where arguments are no JSON object."""
    names: dict[str, str] = {}
    ready = []
    for index, message in enumerate(messages):
        changed = dict(message)
        if message.get("tool_calls"):
            where = f"messages[{index}].tool_calls"
            changed["tool_calls"] = [
                _call(call, f"{where}[{number}].function.arguments", arguments_are_text)
                for number, call in enumerate(message["tool_calls"])
            ]
            names |= {call["id"]: call["function"]["name"] for call in message["tool_calls"]}
        elif message["role"] == "tool" and message.get("tool_call_id") in names:
            changed.setdefault("name", names[message["tool_call_id"]])
        ready.append(changed)
    return ready


def without_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], form: ToolFormat, takes_system: bool
) -> list[Message]:
    """The same conversation in text alone: `tools` in a system message (in the first of the user where the template takes none),
    calls and results as messages of the assistant and the user."""
    plain = _merged([_plain(message, form) for message in messages])
    if not tools:
        return plain
    signatures = "\n".join(json.dumps(tool.for_template(), ensure_ascii=False) for tool in tools)
    # The placeholders are not JSON, so they are written in after the rest.
    example = form.write("<function-name>", {}).replace("{}", "<args-json-object>")
    block = _INTRODUCTION.format(signatures=signatures, example=example)
    first = plain[0] if plain else {}
    if first.get("role") == "system" or not takes_system:
        text = f"{first['content']}\n\n{block}" if first.get("role") == "system" else f"{block}\n\n{first.get('content', '')}"
        return [{**first, "content": text.strip()}, *plain[1:]]
    return [{"role": "system", "content": block}, *plain]


def _call(call: Mapping[str, Any], field: str, is_text: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = _arguments(function["arguments"], field)
    return {**call, "function": {**function, "arguments": json.dumps(arguments, ensure_ascii=False) if is_text else arguments}}


def _arguments(given: str | Mapping[str, Any], field: str) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    try:
        arguments = json.loads(given or "{}")
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()  # half a character or NaN is no JSON text
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field}: not JSON", field) from error
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{field}: not a JSON object", field)
    return arguments


def _plain(message: Mapping[str, Any], form: ToolFormat) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return dict(message)
    functions = [call["function"] for call in message["tool_calls"]]
    calls = (form.separator or "\n").join(form.write(each["name"], each["arguments"]) for each in functions)
    text = "\n".join(part for part in (message.get("content") or "", calls) if part)
    return {"role": message["role"], "content": text}


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Results that stand side by side, and what the user says after them, are one message: templates want turns."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if message["role"] == last.get("role") == "user" and last["content"].endswith("</tool_response>"):
            merged[-1] = {**last, "content": f"{last['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def arguments_are_text(render: Callable[[Sequence[Message]], str]) -> bool:
    """Whether a template wants arguments as text; `render` raises where it cannot render what it is given."""

    def rendered(arguments: object) -> str:
        call = {"id": "call_probe0", "type": "function", "function": {"name": "probe", "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return render([{"role": "user", "content": "hi"}, answer])

    try:
        # An object that was printed and not written as JSON shows Python's quotes.
        return "{'probe_key'" in rendered({"probe_key": "probe_value"})
    except InvalidRequest:
        pass
    try:
        rendered('{"probe_key": "probe_value"}')
    except InvalidRequest:
        return False
    return True
