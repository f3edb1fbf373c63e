"""The output items of one response, and the events that tell a stream of them as they come.

Source: OpenAI's API reference (responses, streaming events).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from router.openai.replies import Json
from router.tool_calls.delta import ToolCallDelta
from router.tool_calls.parser import Piece

Emit = Callable[..., None]
"""Takes an event's type, and its fields."""


class OutputItems:
    """Grows an output from an answer's pieces: text gathers in a message, each call is an item of its own."""

    def __init__(self, response_id: str, emit: Emit) -> None:
        self.output: list[Json] = []
        self._emit = emit
        self._suffix = response_id.removeprefix("resp_")
        self._open: _Message | _Call | None = None

    def add(self, pieces: Iterable[Piece], logprobs: Sequence[Json] = ()) -> None:
        """`logprobs` are those of the tokens of `pieces`; they go with the first text among them."""
        for piece in pieces:
            if isinstance(piece, str):
                self._message().add(piece, logprobs)
                logprobs = ()
            else:
                self._call(piece).add(piece)

    def end(self, status: str) -> None:
        """Nothing follows. `status` is that of the last item: completed, or incomplete."""
        if not self.output:
            self._message()
        self._close(status)

    def _message(self) -> "_Message":
        if not isinstance(self._open, _Message):
            self._close("completed")
            self._open = _Message(self._place(), f"msg_{self._suffix}_{len(self.output)}", self._emit)
            self.output.append(self._open.item)
        return self._open

    def _call(self, delta: ToolCallDelta) -> "_Call":
        if delta.id or not isinstance(self._open, _Call):
            self._close("completed")
            self._open = _Call(self._place(), f"fc_{self._suffix}_{len(self.output)}", delta, self._emit)
            self.output.append(self._open.item)
        return self._open

    def _place(self) -> int:
        return len(self.output)

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._open.end(status)
            self._open = None


class _Message:
    """One message of one part of text."""

    def __init__(self, index: int, item_id: str, emit: Emit) -> None:
        self.item: Json = {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        self._where = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._index = index
        self._text: list[str] = []
        self._logprobs: list[Json] = []
        self._emit = emit
        emit("response.output_item.added", output_index=index, item=dict(self.item))
        emit("response.content_part.added", **self._where, part=self._part())

    def add(self, text: str, logprobs: Sequence[Json]) -> None:
        self._text.append(text)
        self._logprobs += logprobs
        self._emit("response.output_text.delta", **self._where, delta=text, logprobs=list(logprobs))

    def end(self, status: str) -> None:
        part = self._part()
        self.item |= {"status": status, "content": [part]}
        self._emit("response.output_text.done", **self._where, text=part["text"], logprobs=part["logprobs"])
        self._emit("response.content_part.done", **self._where, part=part)
        self._emit("response.output_item.done", output_index=self._index, item=self.item)

    def _part(self) -> dict[str, Any]:
        text = "".join(self._text)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}


class _Call:
    """One call of a function."""

    def __init__(self, index: int, item_id: str, delta: ToolCallDelta, emit: Emit) -> None:
        self.item: Json = {
            "id": item_id,
            "type": "function_call",
            "status": "in_progress",
            "call_id": delta.id,
            "name": delta.name,
            "arguments": "",
        }
        self._index = index
        self._arguments: list[str] = []
        self._emit = emit
        emit("response.output_item.added", output_index=index, item=dict(self.item))

    def add(self, delta: ToolCallDelta) -> None:
        if not delta.arguments:
            return
        self._arguments.append(delta.arguments)
        where = {"item_id": self.item["id"], "output_index": self._index}
        self._emit("response.function_call_arguments.delta", **where, delta=delta.arguments)

    def end(self, status: str) -> None:
        arguments = "".join(self._arguments)
        self.item |= {"status": status, "arguments": arguments}
        where = {"item_id": self.item["id"], "output_index": self._index}
        self._emit("response.function_call_arguments.done", **where, name=self.item["name"], arguments=arguments)
        self._emit("response.output_item.done", output_index=self._index, item=self.item)
