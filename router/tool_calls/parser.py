"""Reads an answer as it comes: text, and the tool calls in it.

However the answer is cut into pieces, text and calls are the same. Nothing is lost: what begins like a call and is none is given
as text, markers included. A call that goes wrong after its arguments have begun stays, cut short, and what follows is text.
Whitespace around calls belongs to them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from router.text.partial_match import possible_beginning
from router.tool_calls.delta import ToolCallDelta, new_call_id
from router.tool_calls.formats import ToolFormat
from router.tool_calls.json_call import JsonCall
from router.tool_calls.reader import CallReader
from router.tool_calls.tag_call import TagCall
from router.tool_calls.tools import Tool

Piece = str | ToolCallDelta


class ToolCallParser:
    """One answer's. `calls` counts the calls that have begun: the answer's finish reason follows from it."""

    def __init__(self, form: ToolFormat, tools: Sequence[Tool], new_id: Callable[[], str] = new_call_id) -> None:
        self.calls = 0
        self._form = form
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._state: Callable[[], bool] = self._in_text
        self._buffer = ""
        self._space = ""
        """Whitespace that is text only if text follows it."""
        self._is_after_call = False
        self._call: CallReader | None = None
        self._raw: str | None = None
        """The text of a call that has not begun yet; its first `_head` characters are text should it turn out to be none."""
        self._head = 0
        self._may_begin_bare = form.begins_bare
        self._out: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        """What is certain by now. Text that could begin a call is held until that is known."""
        self._buffer += text
        self._advance()
        return self._take()

    def finish(self) -> list[Piece]:
        """The rest, at the end of the answer. A call that it cuts short stays as it is."""
        self._advance()
        while self._raw is not None:
            self._give_back()
            self._advance()
        if self._state == self._in_text:
            self._say(self._buffer)
            if self._space and not self._is_after_call:
                self._out.append(self._space)
        return self._take()

    def _advance(self) -> None:
        while self._state():
            pass

    def _in_text(self) -> bool:
        if self._may_begin_bare:
            text = self._buffer.lstrip()
            if not text:
                return False
            self._may_begin_bare = False
            if text[0] == "{":
                self._say(self._buffer[: len(self._buffer) - len(text)])
                return self._open("", 1, text)
        before, begin, after = self._buffer.partition(self._form.begin)
        if begin:
            self._say(before)
            return self._open(begin, len(begin), after)
        keep = possible_beginning(self._buffer, (self._form.begin,))
        self._say(self._buffer[: len(self._buffer) - keep])
        self._buffer = self._buffer[len(self._buffer) - keep :]
        return False

    def _open(self, raw: str, head: int, rest: str) -> bool:
        self._raw, self._head, self._buffer = raw, head, rest
        self._state = self._opening
        return True

    def _opening(self) -> bool:
        """The marker has come; the first character tells in which form the call is written."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if text[0] == "{":
            self._call = JsonCall(self._tools)
        elif self._form.tags is not None:
            self._call = TagCall(self._tools, self._form.tags)
        else:
            self._give_back()
            return True
        self._state = self._in_call
        return True

    def _in_call(self) -> bool:
        assert self._call is not None
        text, self._buffer = self._buffer, ""
        if not text:
            return False
        call = self._call
        released = call.feed(text)
        if self._raw is not None:
            self._raw += text
            if call.has_begun:
                self._begin(call.name, released)
        elif released:
            self._out.append(ToolCallDelta(self.calls - 1, arguments=released))
        if call.is_broken and self._raw is not None:
            self._give_back()
        elif call.is_broken or call.is_done:
            self._buffer, self._call = call.rest, None
            self._state = self._after_call if call.is_done else self._in_text
        else:
            return False
        return True

    def _begin(self, name: str, arguments: str) -> None:
        self._raw, self._space, self._is_after_call = None, "", True
        self._out.append(ToolCallDelta(self.calls, self._new_id(), name, arguments))
        self.calls += 1

    def _give_back(self) -> None:
        """It was no call: its marker is text, and so is what follows unless another marker is in it."""
        assert self._raw is not None
        raw, self._raw, self._call = self._raw + self._buffer, None, None
        self._say(raw[: self._head])
        self._buffer = raw[self._head :]
        self._state = self._in_text

    def _after_call(self) -> bool:
        text = self._buffer.lstrip()
        end = self._form.end or self._form.separator.strip()
        if end.startswith(text) and text != end:
            return False
        if self._form.end and text.startswith(end):
            self._buffer = text[len(end) :]
        elif text.startswith(end):
            another = text[len(end) :].lstrip()
            if not another:
                return False
            if another[0] == "{":
                head = len(self._buffer) - len(text) + len(end)
                return self._open(self._buffer[: len(self._buffer) - len(another)], head, another)
        self._state = self._in_text
        return True

    def _say(self, text: str) -> None:
        body = text.rstrip()
        if body:
            self._out.append(self._space + body)
            self._space, self._is_after_call = "", False
        self._space += text[len(body) :]

    def _take(self) -> list[Piece]:
        """What has gathered, pieces of one kind in one."""
        out, self._out = self._out, []
        joined: list[Piece] = []
        for piece in out:
            last = joined[-1] if joined else None
            if isinstance(piece, str) and isinstance(last, str):
                joined[-1] = last + piece
            elif isinstance(piece, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.index == piece.index:
                joined[-1] = replace(last, arguments=last.arguments + piece.arguments)
            else:
                joined.append(piece)
        return joined
