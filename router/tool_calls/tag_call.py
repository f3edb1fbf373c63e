"""A call in tags, a pair for each argument: strings are written as they are, everything else as JSON.

LongCat's newer checkpoints:  name <longcat_arg_key>k</longcat_arg_key> <longcat_arg_value>v</longcat_arg_value> ...
Qwen3-Coder:                  <function=name> <parameter=k> v </parameter> ... </function>
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.text.partial_match import possible_beginning
from router.tool_calls.json_value import JsonValue
from router.tool_calls.reader import NAMESPACE, CallReader
from router.tool_calls.tools import Tool

_NAME = re.compile(rf"\s*[a-zA-Z0-9_.-]{{0,{64 + len(NAMESPACE)}}}\s*")
_MAX_KEY = 1024


@dataclass(frozen=True)
class TagForm:
    """The tags. An empty one is not written: then the name ends where the next tag begins."""

    name_begin: str
    name_end: str
    key_begin: str
    key_end: str
    value_begin: str
    value_end: str
    end: str
    """Ends the call. `is_end_shared`: it also ends the block the call stands in, so it is left to whoever reads that."""
    is_end_shared: bool
    wraps_values: bool
    """A line break after `value_begin` and one before `value_end` are no part of the value."""


class TagCall(CallReader):
    def __init__(self, tools: Mapping[str, Tool], form: TagForm) -> None:
        super().__init__(tools)
        self._form = form
        self._buffer = ""
        self._step: Callable[[], bool] = self._before_name if form.name_begin else self._in_name
        self._taken = ""
        self._released: list[str] = []
        self._pairs = 0
        self._key = ""
        self._is_text = False
        self._value: list[str] = []
        self._is_value_new = True

    def feed(self, text: str) -> str:
        self._buffer += text
        while not self.is_done and not self.is_broken and self._step():
            pass
        self.rest = self._taken + self._buffer if self.is_broken else self._buffer
        released, self._released = "".join(self._released), []
        return released

    def _before_name(self) -> bool:
        return self._expect({self._form.name_begin: self._in_name})

    def _in_name(self) -> bool:
        name, end, rest = self._buffer.partition(self._form.name_end or "<")
        if not _NAME.fullmatch(name):
            self.is_broken = True
            return False
        if not end:
            return False
        self.name = self._known(name.strip())
        self.is_broken = not self.name
        self._buffer = rest if self._form.name_end else end + rest
        self._step = self._between
        return True

    def _between(self) -> bool:
        """Between pairs: another key, or the end."""
        is_found = self._expect({self._form.key_begin: self._in_key, self._form.end: self._ended})
        if is_found and not self.has_begun:
            self.has_begun = True
            self._released.append("{")
        return is_found

    def _in_key(self) -> bool:
        key, end, rest = self._buffer.partition(self._form.key_end)
        self.is_broken = len(key) > _MAX_KEY + (0 if end else len(self._form.key_end))
        if not end or self.is_broken:
            return False
        self._key, self._buffer = key.strip(), rest
        self._taken += key + end
        self._step = self._before_value
        return True

    def _before_value(self) -> bool:
        if self._form.value_begin and not self._expect({self._form.value_begin: self._in_value}):
            return False
        self._step, self._taken = self._in_value, ""
        self._is_text = self._tools[self.name].takes_text(self._key)
        self._value, self._is_value_new = [], True
        self._released.append((", " if self._pairs else "") + json.dumps(self._key, ensure_ascii=False) + ": ")
        if self._is_text:
            self._released.append('"')
        self._pairs += 1
        return True

    def _in_value(self) -> bool:
        if self._is_value_new and self._form.wraps_values:
            if not self._buffer:
                return False
            self._buffer = self._buffer.removeprefix("\n")
        self._is_value_new = False
        end = self._form.value_end
        at = self._buffer.find(end)
        if at < 0:
            keep = possible_beginning(self._buffer, (end, "\n" + end) if self._form.wraps_values else (end,))
            self._take(self._buffer[: len(self._buffer) - keep])
            self._buffer = self._buffer[len(self._buffer) - keep :]
            return False
        value, self._buffer = self._buffer[:at], self._buffer[at + len(end) :]
        self._take(value.removesuffix("\n") if self._form.wraps_values else value)
        self._released.append('"' if self._is_text else _json("".join(self._value)))
        self._step, self._taken = self._between, ""
        return True

    def _take(self, piece: str) -> None:
        if self._is_text:
            self._released.append(json.dumps(piece, ensure_ascii=False)[1:-1])
        else:
            self._value.append(piece)

    def _ended(self) -> bool:
        self._released.append("}")
        self.is_done = True
        if self._form.is_end_shared:
            self._buffer = self._form.end + self._buffer
        return False

    def _expect(self, tags: Mapping[str, Callable[[], bool]]) -> bool:
        """Takes one of the tags, whitespace before it left out, and goes to its step."""
        text = self._buffer.lstrip()
        for tag, step in tags.items():
            if text.startswith(tag):
                self._taken += self._buffer[: len(self._buffer) - len(text)] + tag
                self._buffer = text[len(tag) :]
                self._step = step
                return True
        self.is_broken = not any(tag.startswith(text) for tag in tags)
        return False


def _json(text: str) -> str:
    """A value that need not be a string: the JSON that it is, else the string that it is."""
    value = JsonValue()
    end, whole = value.feed(text.strip() + " ")
    is_json = value.is_done and end >= len(text.strip())
    return whole.strip() if is_json else json.dumps(text, ensure_ascii=False)
