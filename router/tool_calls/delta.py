"""What a reader of tool calls gives: pieces of calls, and whole calls of such pieces."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of the answer's call number `index`, counted from 0. `id` and `name` come with a call's first piece and are empty in
    the others; `arguments` are to be joined and are then a JSON object."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A whole call. `arguments` is the text of a JSON object, cut short where the answer ended within it."""

    id: str
    name: str
    arguments: str


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def join_calls(pieces: Iterable[str | ToolCallDelta]) -> tuple[str, list[ToolCall]]:
    """The text and the whole calls of an answer's pieces."""
    text: list[str] = []
    heads: dict[int, ToolCallDelta] = {}
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        if isinstance(piece, str):
            text.append(piece)
            continue
        heads.setdefault(piece.index, piece)
        arguments.setdefault(piece.index, []).append(piece.arguments)
    return "".join(text), [ToolCall(head.id, head.name, "".join(arguments[index])) for index, head in heads.items()]
