"""From what an answer must be to the one llguidance grammar that the workers hold it to.

A grammar is checked here, at the door: workers get only such as compile. JSON is written without free whitespace, since small
models would else go on with it for ever.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import orjson
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from protocol.errors import InvalidRequest

MAX_GRAMMAR_CHARACTERS = 64 * 1024
"""A grammar goes to both workers with each request."""

Kind = Literal["json_schema", "regex", "choice", "grammar"]

_JSON_OPTIONS = {"whitespace_flexible": False}


@dataclass(frozen=True)
class Structure:
    """What an answer must be, as it was asked for in `field`.

    json_schema: a schema, as an object, true for any value, or the text of one. regex: llguidance's (Rust's, without look-around).
    choice: one of a list of strings. grammar: llguidance's Lark dialect, its serialised form, or GBNF.
    """

    kind: Kind
    value: Any
    field: str


async def grammar_of(structure: Structure | None) -> str:
    """llguidance's grammar; empty where nothing is asked for. Raises InvalidRequest naming the field."""
    if structure is None:
        return ""
    _check_size(structure.value, structure.field)
    try:
        # A large one takes milliseconds, which no other request's tokens should wait for.
        grammar = await asyncio.to_thread(_GRAMMARS[structure.kind], structure.value)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"{structure.field}: {error}", structure.field) from error
    return await checked(grammar, structure.field)


async def checked(grammar: str, field: str) -> str:
    """`grammar`, when workers can compile it. Raises InvalidRequest naming `field`."""
    _check_size(grammar, field)
    if complaint := await asyncio.to_thread(_complaint, grammar):
        raise InvalidRequest(f"{field}: {complaint}", field)
    return grammar


def _check_size(text: Any, field: str) -> None:
    if isinstance(text, str) and len(text) > MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequest(f"{field} has more than {MAX_GRAMMAR_CHARACTERS} characters", field)


@lru_cache(maxsize=256)
def _complaint(grammar: str) -> str:
    return str(LLMatcher.validate_grammar(grammar))


def _json_schema(schema: dict[str, Any] | bool | str) -> str:
    if isinstance(schema, str):
        schema = orjson.loads(schema)
    if schema is False:
        raise ValueError("nothing conforms to the schema false")
    return str(LLMatcher.grammar_from_json_schema({} if schema is True else schema, defaults=_JSON_OPTIONS))


def _regex(pattern: str) -> str:
    return str(LLMatcher.grammar_from_regex(pattern))


def _choice(choices: list[str]) -> str:
    # JSON's strings are Lark's, but for one control character that JSON leaves as it is.
    return "start: " + " | ".join(orjson.dumps(choice).decode().replace("\x7f", "\\u007f") for choice in choices)


def _grammar(text: str) -> str:
    if "::=" not in text:
        return text
    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # bare Exception, or an index error: the library says so little of what is wrong
        raise ValueError(f"it is no GBNF: {error}") from error


_GRAMMARS: dict[Kind, Callable[[Any], str]] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
