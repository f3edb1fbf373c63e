"""The one llguidance grammar that holds an answer to its tools, in the very form the model was trained to write calls.

A forced call (tool_choice required, or a function's name) is the whole answer: nothing but calls, with arguments valid by their
schemas. With tool_choice auto text is free, and only a call is held to its form, lazily: from its marker on. That is done where it
makes a difference: a tool is strict, only one call is allowed, or the text has a form of its own.

Where a marker is one token of the vocabulary the grammar names the token: spelled letter by letter the model would not know it.
Llama writes calls without a marker, so there an answer either begins with a call or holds none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from router.tool_calls.formats import ToolFormat
from router.tool_calls.tag_call import TagForm
from router.tool_calls.tools import Tool

Schema = Mapping[str, Any]

_JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps and chat templates write it; free whitespace would let small models go on with it for ever."""

_PLAIN_KEY = re.compile(r"[\w.$@/-]+")
_PLAIN_STRING = {"type", "title", "description", "default", "examples", "enum", "const"}
_PLAIN_OBJECT = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema"}


def grammar_for(
    form: ToolFormat,
    tools: Sequence[Tool],
    choice: Literal["auto", "required"] | str = "auto",
    parallel: bool = True,
    token_ids: Mapping[str, int] | None = None,
    answer_schema: Schema | bool | None = None,
) -> str:
    """Lark for llguidance; empty where the answer is free. `choice` is auto, required, or the name of one of `tools`.

    `token_ids` are the markers of `form` that are single tokens. `answer_schema`: what an answer without calls must be.
    """
    if choice == "auto" and parallel and answer_schema is None and not any(tool.strict for tool in tools):
        return ""
    callable_tools = [tool for tool in tools if choice in ("auto", "required", tool.name)]
    return _Grammar(form, callable_tools, token_ids or {}, choice != "auto").text(parallel, answer_schema)


class _Grammar:
    """Collects rules. `holds_all`: arguments of every tool are held to its schema, not only of strict ones."""

    def __init__(self, form: ToolFormat, tools: Sequence[Tool], token_ids: Mapping[str, int], holds_all: bool) -> None:
        self._form = form
        self._token_ids = token_ids
        self._rules: list[str] = []
        self._holds_all = holds_all
        for index, tool in enumerate(tools):
            self._add_call(index, tool)
        self._rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))

    def text(self, parallel: bool, answer_schema: Schema | bool | None) -> str:
        form = self._form
        call = "call" if form.begins_bare else f"{self._marker(form.begin)} call"
        between = _literal(form.separator) if form.separator else ""
        calls = f"{call} ({between} {call})*" if parallel else call
        if self._holds_all:
            start = calls
        elif answer_schema is not None:
            start = f"{calls} | answer"
            self._rules.append(f"answer: {_json({} if answer_schema is True else answer_schema)}")
        elif form.begins_bare:
            start = f"{calls} | TEXT_WITHOUT_CALL"
            self._rules.append(r"TEXT_WITHOUT_CALL: /\s*([^\s{](.|\n)*)?/")
        elif form.begin in self._token_ids:
            start = f"free* ({call} free*)*" if parallel else f"free* ({call})?"
            self._rules.append(f"free: <[^{self._token_ids[form.begin]}]>")
        else:
            start = "(text_to_call call)* TEXT" if parallel else "TEXT | text_to_call call"
            self._rules += [f"text_to_call[lazy]: TEXT {_literal(form.begin)}", r"TEXT: /(.|\n)*/"]
        return "\n".join([f"start: {start}", *self._rules]) + "\n"

    def _add_call(self, index: int, tool: Tool) -> None:
        form = self._form
        is_held = self._holds_all or tool.strict
        if form.tags is not None and form.writes_tags and (not is_held or can_be_tagged(tool, form.tags)):
            body = self._tagged(index, tool, form.tags, is_held)
        else:
            schema = _closed(tool.parameters) if is_held else {"type": "object"}
            words = ["{", '"name"', ": ", f'"{tool.name}"', ", ", f'"{form.arguments_key}"', ": "]
            head = " ".join(_literal(word) for word in words)  # lexed word by word, as the JSON that may stand in its place
            line = "" if form.begins_bare else '"\\n" '
            body = f'{line}{head} {_json(schema)} "}}" {line}'.rstrip()
        end = f" {self._marker(form.end)}" if form.end else ""
        self._rules.append(f"call_{index}: {body}{end}")

    def _tagged(self, index: int, tool: Tool, tags: TagForm, is_held: bool) -> str:
        """The call's inside in tags, its arguments in the schema's order. Those of a tool that is not held to it are free text."""
        line = "\n" if tags.wraps_values else ""
        end = "" if tags.is_end_shared else f"{tags.end}\n"
        begin = f"\n{tags.name_begin}" if tags.name_begin else ""
        parts = [_literal(f"{begin}{tool.name}{tags.name_end}\n")]
        if not is_held:
            self._add_any_value(tags)
            key = f"{self._marker(tags.key_begin)} /[^<>]+/ {self._marker(tags.key_end)} {_literal(line or chr(10))}"
            parts.append(f"({key} {self._value_begin(tags)} any_value {_literal(chr(10))})*")
        properties = tool.parameters.get("properties", {}) if is_held else {}
        for number, (key, schema) in enumerate(properties.items()):
            name = f"pair_{index}_{number}"
            opening = f"{self._marker(tags.key_begin)} {_literal(key)} {self._marker(tags.key_end)} {_literal(chr(10))}"
            value = self._value(tags, schema, line)
            self._rules.append(f"{name}: {opening} {self._value_begin(tags)} {value} {_literal(chr(10))}")
            parts.append(name if key in tool.parameters.get("required", ()) else f"{name}?")
        return " ".join([*parts, *([_literal(end)] if end else [])])

    def _value(self, tags: TagForm, schema: Schema, line: str) -> str:
        """A value and its end tag."""
        end = " ".join(each for each in (_literal(line) if line else "", self._marker(tags.value_end)) if each)
        if schema.get("type") != "string":
            return f"{_json(schema)} {end}"
        texts = [schema["const"]] if "const" in schema else schema.get("enum")
        if texts is not None:
            return "(" + " | ".join(_literal(text) for text in texts) + f") {end}"
        self._add_any_value(tags)
        return "any_value"

    def _value_begin(self, tags: TagForm) -> str:
        return self._marker(tags.value_begin) if tags.value_begin else ""

    def _add_any_value(self, tags: TagForm) -> None:
        escaped = tags.value_end.replace("/", "\\/")
        rules = [
            f"any_value: VALUE_TEXT {self._marker(tags.value_end)}",
            rf"VALUE_TEXT: /(.|\n)*/ & ~/(.|\n)*{escaped}(.|\n)*/",
        ]
        if tags.value_end not in self._token_ids:
            rules = [f"any_value[lazy]: /(.|\\n)*/ {_literal(tags.value_end)}"]
        self._rules += [rule for rule in rules if rule not in self._rules]

    def _marker(self, marker: str) -> str:
        token_id = self._token_ids.get(marker)
        return _literal(marker) if token_id is None else f"<[{token_id}]>"


def can_be_tagged(tool: Tool, tags: TagForm) -> bool:
    """Whether tags can express exactly the tool's schema. JSON can wherever llguidance can, and is read in every format."""
    schema = tool.parameters
    properties = schema.get("properties", {})
    if (
        not set(schema) <= _PLAIN_OBJECT
        or "$ref" in json.dumps(schema)
        or not set(schema.get("required", ())) <= set(properties)
    ):
        return False
    return "properties" in schema and all(
        _PLAIN_KEY.fullmatch(key) and isinstance(each, Mapping) and _can_be_value(each, tags)
        for key, each in properties.items()
    )


def _can_be_value(schema: Schema, tags: TagForm) -> bool:
    if schema.get("type") != "string":
        return True
    texts = [schema["const"]] if "const" in schema else schema.get("enum", [])
    is_plain = set(schema) <= _PLAIN_STRING and not {"enum", "const"} <= set(schema)
    return is_plain and all(isinstance(text, str) and tags.value_end not in text for text in texts)


def _closed(schema: Schema) -> Schema:
    """Without arguments that the tool does not name: valid all the same, and never of use."""
    is_plain = "properties" in schema and set(schema) <= _PLAIN_OBJECT and "additionalProperties" not in schema
    if not is_plain or not set(schema.get("required", ())) <= set(schema["properties"]):
        return schema
    return {**schema, "additionalProperties": False}


def _json(schema: Schema | bool) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS} if isinstance(schema, Mapping) else schema)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
