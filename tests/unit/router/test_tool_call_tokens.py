"""Tool calls whose markers are tokens of the vocabulary: special ones, added ones, and none; and what a request's tools mean."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from protocol.errors import InvalidRequest
from router.openai.parse import parse as parse_body
from router.structured_output import Structure
from router.text.answer_text import AnswerText
from router.text.chat_template import ChatTemplate
from router.text.tokenizer import TextTokenizer
from router.tool_calls.delta import ToolCall, join_calls
from router.tool_calls.formats import HERMES, LLAMA3, LONGCAT_XML, ToolFormat
from router.tool_calls.plan import NO_TOOLS, ToolCalling
from router.tool_calls.tools import FunctionDefinition, FunctionName, NamedToolChoice, Tool, tool_of

MARKERS = ("<tool_call>", "</tool_call>")
ANSWER = 'Sö <tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
WEATHER = Tool(
    "get_weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    place="tools[0].function",
)


def text_tokenizer(markers: str, is_byte_level: bool = True) -> TextTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    decoder = decoders.ByteLevel()
    backend.decoder = decoder if is_byte_level else decoders.Sequence([decoder])
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    if markers != "spelled":
        backend.add_tokens([AddedToken(marker, special=markers == "special") for marker in MARKERS])
    return TextTokenizer(backend, ChatTemplate("{{ messages[0].content }}", {}))


@pytest.mark.parametrize("is_byte_level", [True, False])
@pytest.mark.parametrize("markers", ["special", "added", "spelled"])
async def test_markers_have_text_where_calls_are_read(markers: str, is_byte_level: bool) -> None:
    tokenizer = text_tokenizer(markers, is_byte_level)
    plan = await ToolCalling.of_model("auto", tokenizer).plan([WEATHER])
    text, parser = AnswerText(tokenizer, [], 0, plan.shown_tokens), plan.parser()
    assert parser is not None
    ids = tokenizer.backend.encode(ANSWER).ids
    assert (len(ids) < len(ANSWER.encode())) == (markers != "spelled")
    pieces = [
        piece for token in [*ids, tokenizer.backend.token_to_id("<eos>")] for piece in parser.push(text.push((token,))[0])
    ]
    said, [call] = join_calls([*pieces, *parser.push(text.finish()[0]), *parser.finish()])
    assert (said, call) == ("Sö", ToolCall(call.id, "get_weather", '{"city": "Köln"}'))


async def test_without_tools_special_tokens_have_no_text() -> None:
    tokenizer = text_tokenizer("special")
    plan = await ToolCalling.of_model("auto", tokenizer).plan([])
    assert plan is NO_TOOLS
    assert plan.parser() is None
    text = AnswerText(tokenizer, [], 0, plan.shown_tokens)
    assert "".join(text.push((token,))[0] for token in tokenizer.backend.encode(ANSWER).ids).startswith("Sö \n{")


@pytest.mark.parametrize("markers", ["special", "added", "spelled"])
async def test_a_forced_call_is_written_with_the_model_s_own_tokens(markers: str) -> None:
    tokenizer = text_tokenizer(markers)
    plan = await ToolCalling.of_model("auto", tokenizer).plan([WEATHER], "required")
    matcher = LLMatcher(LLTokenizer(tokenizer.backend.to_str(), eos_token=tokenizer.backend.token_to_id("<eos>")), plan.grammar)
    ids = tokenizer.backend.encode(ANSWER.removeprefix("Sö ")).ids
    assert matcher.try_consume_tokens(ids) == len(ids)
    assert matcher.is_accepting()


async def test_choices() -> None:
    calling = ToolCalling.of_model("auto", text_tokenizer("added"))
    assert (await calling.plan([WEATHER])).grammar == ""
    assert await calling.plan([WEATHER], "none") is NO_TOOLS
    assert (await calling.plan([WEATHER], parallel=False)).grammar
    named = NamedToolChoice(type="function", function=FunctionName(name="get_weather"))
    once = await calling.plan([WEATHER], "required", parallel=False)
    assert (await calling.plan([WEATHER, Tool("now")], named)).grammar == once.grammar
    answer = Structure("json_schema", {"type": "object"}, "response_format")
    assert "answer" in (await calling.plan([WEATHER], answer=answer)).grammar


NAMED_MISSING = NamedToolChoice(type="function", function=FunctionName(name="missing"))
BAD_SCHEMA = Tool("f", parameters={"type": "object", "properties": {"x": {"type": "strin"}}}, place="tools[1].function")
STRICT_BAD_SCHEMA = Tool("f", parameters=BAD_SCHEMA.parameters, strict=True, place="tools[1].function")


@pytest.mark.parametrize(
    ("tools", "asked", "field"),
    [
        ([], {"choice": "required"}, "tool_choice"),
        ([WEATHER], {"choice": NAMED_MISSING}, "tool_choice"),
        ([WEATHER, Tool("get_weather", place="tools[1].function")], {}, "tools[1].function.name"),
        ([WEATHER, BAD_SCHEMA], {"choice": "required"}, "tools[1].function.parameters"),
        ([WEATHER, STRICT_BAD_SCHEMA], {}, "tools[1].function.parameters"),
        ([Tool(f"f{number}") for number in range(129)], {}, "tools"),
        ([WEATHER], {"choice": "required", "answer": Structure("json_schema", {}, "response_format")}, "response_format"),
        ([WEATHER], {"answer": Structure("regex", "a", "guided_regex")}, "guided_regex"),
    ],
)
async def test_what_is_wrong_is_named(tools: list[Tool], asked: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await ToolCalling.of_model("auto", text_tokenizer("added")).plan(tools, **asked)
    assert refused.value.field == field


async def test_a_schema_that_only_describes_may_be_anything() -> None:
    assert (await ToolCalling.of_model("auto", text_tokenizer("added")).plan([WEATHER, BAD_SCHEMA])).grammar == ""


async def test_a_router_that_refuses_tools_says_so() -> None:
    with pytest.raises(InvalidRequest, match="tool_parser"):
        await ToolCalling.of_model("none", text_tokenizer("added")).plan([WEATHER])


WORDS = ("type", "properties", "required", "additionalProperties", "enum", "const", "items", "$ref", "anyOf", "x-guidance", "a")
LEAVES = ("object", "string", "integer", "array", "x<y", "</longcat_arg_value>", "#/$defs/a", None, True, 5, 1.5)
VALUES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(parameters=st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=5), strict=st.booleans(), forced=st.booleans())
@pytest.mark.parametrize("form", [HERMES, LONGCAT_XML, LLAMA3])
async def test_no_schema_breaks_the_door(form: ToolFormat, parameters: dict[str, Any], strict: bool, forced: bool) -> None:
    """Whatever a client sends is a grammar that compiles, or refused by name."""
    try:
        tool = tool_of(FunctionDefinition(name="f", parameters=parameters, strict=strict), "tools[0].function")
        plan = await ToolCalling(form, {}).plan([tool], "required" if forced else "auto")
    except InvalidRequest as error:
        assert (error.field or "").startswith("tools")
    else:
        assert LLMatcher.validate_grammar(plan.grammar) == "" or not plan.grammar
        ChatTemplate("{{ messages[0].content }}", {}).render([{"role": "user", "content": "hi"}], plan.tools, form)


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"properties": []}])
def test_parameters_are_those_of_an_object(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        tool_of(FunctionDefinition(name="f", parameters=parameters), "tools[3].function")
    assert refused.value.field == "tools[3].function.parameters"


@pytest.mark.parametrize("name", ["", "with space", "x" * 65, "ä"])
def test_names_follow_openai_s_rule(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_body(FunctionDefinition, json.dumps({"name": name}).encode())
    assert refused.value.field == "name"
