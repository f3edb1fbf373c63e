"""Grammars are what was asked for: a matcher, as workers have it, takes exactly such texts."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from protocol.errors import InvalidRequest
from router.structured_output import MAX_GRAMMAR_CHARACTERS, Kind, Structure, checked, grammar_of
from tests.integration.router_support import EOS, byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCABULARY = LLTokenizer(
    TOKENIZER.to_str(), n_vocab=TOKENIZER.get_vocab_size(), eos_token=TOKENIZER.token_to_id(EOS), slices=[]
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(VOCABULARY, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = TOKENIZER.encode(text).ids
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("kind", "value", "right", "wrong"),
    [
        ("json_schema", PERSON, ['{"name":"Ü","age":3}'], ['{"name":"a"}', '{"name":"a","age":-1}', "{}", "null"]),
        ("json_schema", json.dumps(PERSON), ['{"name":"","age":0}'], ['{"age":0,"name":""}']),
        ("json_schema", {"type": "object"}, ["{}", '{"a":[1,null]}'], ["[]", '{"a": 1}', "{ }"]),
        ("json_schema", True, ["1", '"x"', "{}", "null"], ["", "x"]),
        ("json_schema", {}, ["[true]"], ["[true"]),
        ("regex", "[a-c]{2}", ["ab"], ["a", "abc", "ad"]),
        (
            "choice",
            ["yes", 'say "no"', "ja\\nein", "zwei\nZeilen"],
            ["yes", 'say "no"', "ja\\nein", "zwei\nZeilen"],
            ["no", ""],
        ),
        ("grammar", 'start: "a" | "b" start', ["bba"], ["b", ""]),
        ("grammar", 'root ::= "a" | [x-z]+', ["a", "zx"], ["ab"]),
    ],
)
async def test_a_grammar_takes_what_was_asked_for_and_nothing_else(
    kind: Kind, value: Any, right: list[str], wrong: list[str]
) -> None:
    grammar = await grammar_of(Structure(kind, value, "f"))
    assert [text for text in right if not accepts(grammar, text)] == []
    assert [text for text in wrong if accepts(grammar, text)] == []


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
async def test_any_strings_can_be_the_choices(choices: list[str]) -> None:
    try:
        grammar = await grammar_of(Structure("choice", choices, "f"))
    except InvalidRequest:
        assert any(0xD800 <= ord(character) <= 0xDFFF or character == "\0" for text in choices for character in text)
        return
    assert all(accepts(grammar, text) for text in choices if TOKENIZER.decode(TOKENIZER.encode(text).ids) == text)


async def test_a_serialised_grammar_is_taken_as_it_is() -> None:
    grammar = str(LLMatcher.grammar_from_regex("a+"))
    assert await grammar_of(Structure("grammar", grammar, "f")) == grammar
    assert await grammar_of(None) == ""


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json_schema", {"type": "strin"}),
        ("json_schema", {"$ref": "#/nowhere"}),
        ("json_schema", {"$ref": "http://example.com/schema"}),
        ("json_schema", {"type": "string", "pattern": "(?=a)"}),
        ("json_schema", {"uniqueItems": True, "type": "array"}),
        ("json_schema", {"type": "object", "properties": {"a": False}, "required": ["a"]}),
        ("json_schema", "[1]"),
        ("json_schema", "nonsense"),
        ("json_schema", False),
        ("regex", "("),
        ("grammar", ""),
        ("grammar", "start: missing"),
        ("grammar", "::="),
        ("grammar", "root ::= missing"),
        ("grammar", 'root ::= "a\\'),
        ("grammar", '{"grammars": []}'),
        ("choice", ["x" * MAX_GRAMMAR_CHARACTERS]),
    ],
)
async def test_what_cannot_be_enforced_is_refused_and_the_field_named(kind: Kind, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await grammar_of(Structure(kind, value, "response_format"))
    assert refused.value.field == "response_format"
    assert "response_format" in str(refused.value)


async def test_a_nested_schema_ends_in_a_refusal_and_not_in_a_crash() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    try:
        assert await checked(await grammar_of(Structure("json_schema", schema, "f")), "f")
    except InvalidRequest as error:
        assert error.field == "f"
