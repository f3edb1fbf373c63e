"""What the grammars of tool calls admit, walked with llguidance itself: only calls that parse, with valid arguments."""

import itertools
import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from router.tool_calls.delta import ToolCall, join_calls
from router.tool_calls.formats import HERMES, LLAMA3, LONGCAT, LONGCAT_XML, QWEN_CODER, ToolFormat
from router.tool_calls.grammar import grammar_for
from router.tool_calls.parser import ToolCallParser
from router.tool_calls.tools import Tool

FORMATS = {"hermes": HERMES, "qwen_coder": QWEN_CODER, "longcat": LONGCAT, "longcat_xml": LONGCAT_XML, "llama3": LLAMA3}
EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
EOS = "<eos>"

WEATHER = Tool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 5},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["city", "days"],
    },
)
PATTERN = Tool(
    "look_up",
    parameters={"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"}}, "required": ["id"]},
)
NOTHING = Tool("now")
TOOLS = [WEATHER, PATTERN, NOTHING]


def tokenizer(form: ToolFormat, markers: str) -> Tokenizer:
    """Bytes, and the format's markers as tokens: "special", "added" (and not special), or spelled in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "i"), ("ci", "t"), ("Ċ", "<"), ('"', ":"), ("}", "}")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    one = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    one.pre_tokenizer, one.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    one.add_special_tokens([AddedToken(EOS, special=True), AddedToken("<think>", special=True)])
    if markers != "spelled":
        one.add_tokens([AddedToken(marker, special=markers == "special") for marker in form.markers])
    return one


class Walk:
    """An answer drawn at random from what a grammar allows."""

    def __init__(self, form: ToolFormat, markers: str = "spelled", tools: list[Tool] = TOOLS, **asked: Any) -> None:
        self.form, self.tools = form, tools
        self.tokenizer = tokenizer(form, markers)
        self.eos = self.tokenizer.token_to_id(EOS)
        self.inner = LLTokenizer(self.tokenizer.to_str(), eos_token=self.eos)
        ids = {marker: self.tokenizer.token_to_id(marker) for marker in form.markers}
        known = {marker: token_id for marker, token_id in ids.items() if token_id is not None}
        self.grammar = grammar_for(form, tools, token_ids=known, **asked)
        assert LLMatcher.validate_grammar(self.grammar) == ""
        self.matcher = LLMatcher(self.inner, self.grammar)
        assert not self.matcher.is_error(), self.matcher.get_error()

    def allowed(self) -> list[int]:
        mask = self.matcher.compute_bitmask()
        return [token for token in range(self.tokenizer.get_vocab_size()) if mask[token // 8] >> (token % 8) & 1]

    def draw(self, seed: int, steps: int = 600) -> str | None:
        """None where it took too long. Prefers what ends strings and lists, as a model would."""
        chance = random.Random(seed)
        ending = {self.tokenizer.token_to_id(token) for token in '"}]<,:'} | set(
            range(256 + 5, self.tokenizer.get_vocab_size())
        )
        tokens: list[int] = []
        self.matcher.reset()
        closing = self.tokenizer.encode(self.form.tags.value_end).ids if self.form.tags else []
        for _ in range(steps):
            if closing and chance.random() < 0.05:
                count = self.matcher.try_consume_tokens(closing)
                tokens += closing[:count]
            allowed = self.allowed()
            preferred = [token for token in allowed if token in ending]
            token = chance.choice(preferred if preferred and chance.random() < 0.3 else allowed)
            if token == self.eos or self.matcher.is_stopped():
                return self.text(tokens)
            tokens.append(token)
            assert self.matcher.consume_token(token)
            if self.matcher.is_stopped():
                return self.text(tokens)
        return None

    def admits(self, text: str) -> bool:
        """The whole text, and then the end, may be said: markers by their tokens where there are such."""
        self.matcher.reset()
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.matcher.try_consume_tokens(tokens) == len(tokens) and self.matcher.is_accepting()

    def text(self, tokens: list[int]) -> str:
        """Decoded as the router does it for tools: markers have text, other special tokens have none."""
        text = ""
        for is_marker, group in itertools.groupby(tokens, lambda token: self.tokenizer.id_to_token(token) in self.form.markers):
            text += self.tokenizer.decode(list(group), skip_special_tokens=not is_marker)
        return text

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        parser = ToolCallParser(self.form, self.tools)
        return join_calls([*parser.push(text), *parser.finish()])


@EVERY_FORMAT
@pytest.mark.parametrize("markers", ["special", "added", "spelled"])
@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_every_forced_answer_is_calls_with_valid_arguments(form: ToolFormat, markers: str, choice: str) -> None:
    walk = Walk(form, markers, choice=choice)
    ended = 0
    for seed in range(12):
        answer = walk.draw(seed)
        if answer is None:
            continue
        ended += 1
        text, calls = walk.parse(answer)
        assert (text, bool(calls)) == ("", True), answer
        for call in calls:
            tool = next(tool for tool in TOOLS if tool.name == call.name)
            assert choice in ("required", tool.name)
            jsonschema.validate(json.loads(call.arguments), dict(tool.parameters))
    assert ended >= 6


@EVERY_FORMAT
@pytest.mark.parametrize("markers", ["special", "spelled"])
def test_what_the_model_was_trained_to_write_is_admitted(form: ToolFormat, markers: str) -> None:
    arguments = {"city": 'São "P"', "unit": "c", "days": 3, "tags": [True, False]}
    one = written(form, "get_weather", arguments)
    many = form.separator.join([one, written(form, "now", {})])
    walk = Walk(form, markers, choice="required")
    assert walk.admits(one)
    assert walk.admits(many)
    assert not walk.admits("Well, " + one)
    assert not walk.admits(one + "?")
    assert not walk.admits(written(form, "get_weather", {"city": "P", "days": 9}))
    assert not walk.admits(written(form, "no_such_tool", {}))
    assert not Walk(form, markers, choice="now").admits(one)
    assert not Walk(form, markers, choice="required", parallel=False).admits(many)
    [call] = walk.parse(one)[1]
    assert json.loads(call.arguments) == arguments


@EVERY_FORMAT
@pytest.mark.parametrize("markers", ["special", "spelled"])
def test_with_a_strict_tool_text_is_free_and_calls_are_not(form: ToolFormat, markers: str) -> None:
    strict = Tool("get_weather", parameters=WEATHER.parameters, strict=True)
    walk = Walk(form, markers, [strict, NOTHING], choice="auto")
    good, bad = (written(form, "get_weather", {"city": "P", "days": days}) for days in (3, 9))
    free = written(form, "now", {"anything": "goes"})
    assert walk.admits("Hello < world\n\n")
    assert walk.admits("")
    assert walk.admits(good)
    assert walk.admits(form.separator.join([good, free]))
    assert not walk.admits(bad)
    if not form.begins_bare:
        assert walk.admits(f"Let me see. {good}\n{free} Done.")
        assert not walk.admits(f"Let me see. {bad}")
    if markers == "special" and not form.begins_bare:
        assert walk.admits("<think>I should not")


@EVERY_FORMAT
def test_one_call_at_most(form: ToolFormat) -> None:
    walk = Walk(form, choice="auto", parallel=False)
    one = written(form, "now", {})
    assert walk.admits(one)
    assert walk.admits("No call at all.")
    assert not walk.admits(form.separator.join([one, one]))


@EVERY_FORMAT
def test_an_answer_of_a_form_or_calls(form: ToolFormat) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    walk = Walk(form, choice="auto", answer_schema=schema)
    assert walk.admits('{"a": 1}')
    assert walk.admits(written(form, "now", {}))
    assert not walk.admits("text")


@EVERY_FORMAT
def test_nothing_is_held_where_nothing_was_asked_for(form: ToolFormat) -> None:
    assert grammar_for(form, TOOLS) == ""


def written(form: ToolFormat, name: str, arguments: dict[str, Any]) -> str:
    tags = form.tags
    if tags is None or not form.writes_tags:
        return form.write(name, arguments)
    line = "\n" if tags.wraps_values else ""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    pairs = [
        f"{tags.key_begin}{key}{tags.key_end}\n{tags.value_begin}{text}{line}{tags.value_end}\n" for key, text in texts.items()
    ]
    head = f"{line}{tags.name_begin}{name}{tags.name_end}\n"
    return form.begin + head + "".join(pairs) + ("" if tags.is_end_shared else f"{tags.end}\n") + form.end
