"""A call as a JSON object: {"name": ..., "arguments": {...}}.

Members may come in any order; others than these are skipped. "parameters" is another word for "arguments" (Llama), and arguments
may be a string that holds their JSON.
"""

import json
from collections.abc import Mapping

from router.tool_calls.json_value import JsonValue
from router.tool_calls.reader import CallReader
from router.tool_calls.tools import Tool

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class JsonCall(CallReader):
    def __init__(self, tools: Mapping[str, Tool]) -> None:
        super().__init__(tools)
        self._expects = "{"
        self._key: str | None = None
        self._value: JsonValue | None = None
        self._captured: list[str] = []
        self._is_streaming = False
        self._arguments: str | None = None
        self._released: list[str] = []
        self._since_released: list[str] = []

    def feed(self, text: str) -> str:
        at = 0
        while at < len(text) and not self.is_done and not self.is_broken:
            start, before = at, (self.has_begun, self._is_streaming)
            if self._value is not None:
                at = self._continue(self._value, text, at)
            elif text[at] in _SPACE:
                at += 1
            else:
                at = self._structure(text[at], at)
            if self._is_streaming or before != (self.has_begun, self._is_streaming):
                self._since_released = []
            else:
                self._since_released.append(text[start:at])
        if self.is_broken:
            held = self._value.held if self._is_streaming and self._value is not None else ""
            self.rest = held + "".join(self._since_released) + text[at:]
        else:
            self.rest = text[at:]
        released, self._released = "".join(self._released), []
        return released

    def _structure(self, character: str, at: int) -> int:
        """One character outside of keys and values."""
        if self._expects == "{" and character == "{":
            self._expects = "first key"
        elif self._expects in ("first key", "key") and character == '"':
            self._value, self._captured = JsonValue(), []
            return at
        elif self._expects == ":" and character == ":":
            self._expects = "value"
        elif self._expects == "value":
            self._begin_value(character)
            return at
        elif self._expects == "after" and character == ",":
            self._expects = "key"
        elif self._expects in ("after", "first key") and character == "}":
            self._end()
        else:
            self.is_broken = True
            return at
        return at + 1

    def _begin_value(self, character: str) -> None:
        self._value, self._captured = JsonValue(), []
        if self._key in _ARGUMENTS and self._arguments is not None:
            self.is_broken = True
        elif self._key in _ARGUMENTS and self.name and character == "{":
            self._is_streaming, self._arguments, self.has_begun = True, "", True

    def _continue(self, value: JsonValue, text: str, at: int) -> int:
        at, piece = value.feed(text, at)
        (self._released if self._is_streaming else self._captured).append(piece)
        if value.is_broken:
            self.is_broken = True
        elif value.is_done:
            self._value = None
            self._value_ended()
        return at

    def _value_ended(self) -> None:
        """A key or a value is whole."""
        captured = "".join(self._captured)
        if self._expects in ("first key", "key"):
            self._key = json.loads(captured)
            self._expects = ":"
            return
        if self._is_streaming:
            self._is_streaming = False
        elif self._key == "name":
            name = json.loads(captured) if captured.startswith('"') and not self.name else ""
            self.name = self._known(name)
            self.is_broken = not self.name
        elif self._key in _ARGUMENTS:
            self._arguments = _object(captured)
            self.is_broken = self._arguments is None
        self._expects = "after"
        self._begin_if_certain()

    def _end(self) -> None:
        self._arguments = "{}" if self._arguments is None else self._arguments
        self._begin_if_certain()
        self.is_done, self.is_broken = self.has_begun, not self.has_begun

    def _begin_if_certain(self) -> None:
        if self.name and self._arguments is not None and not self.has_begun and not self.is_broken:
            self.has_begun = True
            self._released.append(self._arguments)


def _object(captured: str) -> str | None:
    """The JSON object that a value is or holds as text; None where there is none."""
    if captured.startswith("{"):
        return captured
    if captured == "null":
        return "{}"
    if not captured.startswith('"'):
        return None
    text = json.loads(captured)
    try:
        text.encode()
    except UnicodeEncodeError:  # escapes for half a character: nothing that could be sent on
        return None
    value = JsonValue()
    end, whole = value.feed(text.strip())
    is_object = value.is_done and end == len(text.strip()) and whole.startswith("{")
    return whole if is_object else None
