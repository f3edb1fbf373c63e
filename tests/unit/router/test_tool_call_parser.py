"""Tool calls read from answers: forms, malformed ones, and the same result however an answer is cut."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.tool_calls.delta import ToolCall, ToolCallDelta, join_calls
from router.tool_calls.formats import HERMES, LLAMA3, LONGCAT, LONGCAT_XML, QWEN_CODER, ToolFormat, format_of
from router.tool_calls.parser import ToolCallParser
from router.tool_calls.reader import CallReader
from router.tool_calls.tools import Tool

WEATHER = Tool(
    "get_weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "any": {}}},
)
TIME = Tool("get-time_2")
TOOLS = (WEATHER, TIME)
JSON_FORMATS = (HERMES, LONGCAT, LLAMA3)


def parse(form: ToolFormat, *pieces: str) -> tuple[str, list[ToolCall]]:
    return join_calls(stream(form, *pieces))


def stream(form: ToolFormat, *pieces: str) -> list[str | ToolCallDelta]:
    numbers = itertools.count(1)
    parser = ToolCallParser(form, TOOLS, lambda: f"call_{next(numbers)}")
    out = [each for piece in pieces for each in parser.push(piece)] + parser.finish()
    assert parser.calls == len(join_calls(out)[1])
    return out


def call(number: int, arguments: str, name: str = "get_weather") -> ToolCall:
    return ToolCall(f"call_{number}", name, arguments)


PARIS = '{"city": "Paris"}'


@pytest.mark.parametrize(
    ("form", "answer", "text", "calls"),
    [
        (HERMES, "Just text.", "Just text.", []),
        (HERMES, "a < b <tool <tool_ca", "a < b <tool <tool_ca", []),
        (HERMES, " \n", " \n", []),
        (
            HERMES,
            'Let me see.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n',
            "Let me see.",
            [call(1, PARIS)],
        ),
        (
            HERMES,
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>\n'
            '{"name": "get-time_2", "arguments": {}}\n</tool_call> and then',
            " and then",
            [call(1, PARIS), call(2, "{}", "get-time_2")],
        ),
        (HERMES, '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', "", [call(1, PARIS)]),
        (HERMES, '<tool_call>{"name": "get-time_2"}</tool_call>', "", [call(1, "{}", "get-time_2")]),
        (HERMES, '<tool_call>{"name": "get-time_2", "arguments": null}', "", [call(1, "{}", "get-time_2")]),
        (
            HERMES,
            '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
            "",
            [call(1, PARIS)],
        ),
        (
            HERMES,
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
            "",
            [call(1, '{"city": "New\\nYork", "days": 3}')],
        ),
        (LONGCAT, 'Hm.<longcat_tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</longcat_tool_call>', "Hm.",
         [call(1, PARIS)]),
        (
            LONGCAT,
            "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Paris</longcat_arg_value>\n"
            "<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n"
            '<longcat_arg_key>any</longcat_arg_key>\n<longcat_arg_value>{"a": [1]}</longcat_arg_value>\n</longcat_tool_call>'
            "<longcat_tool_call>functions.get-time_2</longcat_tool_call>",
            "",
            [call(1, '{"city": "Paris", "days": 3, "any": {"a": [1]}}'), call(2, "{}", "get-time_2")],
        ),
        (
            LONGCAT,
            "<longcat_tool_call>get_weather<longcat_arg_key>any</longcat_arg_key><longcat_arg_value>not json</longcat_arg_value>"
            "</longcat_tool_call>",
            "",
            [call(1, '{"any": "not json"}')],
        ),
        (LLAMA3, '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [call(1, PARIS)]),
        (
            LLAMA3,
            '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}; '
            '{"name": "get-time_2", "parameters": {}}',
            "",
            [call(1, PARIS), call(2, "{}", "get-time_2")],
        ),
        (LLAMA3, 'I say {"name": "get_weather", "parameters": {}}', 'I say {"name": "get_weather", "parameters": {}}', []),
    ],
)  # fmt: skip
def test_what_models_write(form: ToolFormat, answer: str, text: str, calls: list[ToolCall]) -> None:
    assert parse(form, answer) == (text, calls)
    assert parse(form, *answer) == (text, calls)


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        (HERMES, "<tool_call>\nsorry, no\n</tool_call>"),
        (HERMES, '<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"arguments": {"city": "Paris"}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>'),
        (HERMES, r'<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"\ud800\"}"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "get_weather", "argu'),
        (HERMES, "<tool_call>[]</tool_call> "),
        (HERMES, "<tool_call><function=no_such_tool></function></tool_call>"),
        (HERMES, "  <tool_call>  "),
        (LONGCAT, "<longcat_tool_call>what is this<longcat_arg_key>"),
        (LLAMA3, '<|python_tag|>search.call(query="x")'),
        (LLAMA3, '{"answer": 42}; {"name": "get_weather", "parameters": {}}'),
        (LLAMA3, '{"a": "b", "c'),
    ],
)
def test_what_is_no_call_is_text(form: ToolFormat, answer: str) -> None:
    assert parse(form, answer) == (answer, [])
    assert parse(form, *answer) == (answer, [])


def test_a_call_within_what_is_none_is_found() -> None:
    good = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert parse(HERMES, f"<tool_call>oops {good}") == ("<tool_call>oops", [call(1, PARIS)])
    assert parse(HERMES, f'<tool_call>{{"x": "{good[:20]}') == (f'<tool_call>{{"x": "{good[:20]}', [])


def test_a_call_that_goes_wrong_after_its_arguments_began_stays_and_the_rest_is_text() -> None:
    broken = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", oops}}</tool_call>'
    assert parse(HERMES, *broken) == parse(HERMES, broken) == ("oops}}</tool_call>", [call(1, '{"city": "Paris", ')])
    after = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}, "id": nul}</tool_call>'
    assert parse(HERMES, *after) == parse(HERMES, after) == (', "id": nul}</tool_call>', [call(1, PARIS)])
    tags = "<longcat_tool_call>get_weather<longcat_arg_key>city</longcat_arg_key> oops"
    assert parse(LONGCAT, *tags) == parse(LONGCAT, tags) == ("<longcat_arg_key>city</longcat_arg_key> oops", [call(1, "{")])


def test_arguments_come_as_they_are_written() -> None:
    pieces = [
        '<tool_call>{"name": "get_weather", ',
        '"arguments": {"ci',
        'ty": "Pa',
        'ris", "days": 1',
        "2",
        "}",
        "}</tool",
        "_call>",
    ]
    deltas = [each for each in stream(HERMES, *pieces) if isinstance(each, ToolCallDelta)]
    assert [each.arguments for each in deltas] == ['{"ci', 'ty": "Pa', 'ris", "days": ', "12}"]
    assert [(each.id, each.name) for each in deltas] == [("call_1", "get_weather")] + [("", "")] * 3
    tags = [
        "<longcat_tool_call>get_weather\n",
        "<longcat_arg_key>city</longcat_arg_key><longcat_arg_value>Pa",
        "ris</",
        "longcat_arg_value>",
        "</longcat_tool_call>",
    ]
    deltas = [each for each in stream(LONGCAT, *tags) if isinstance(each, ToolCallDelta)]
    assert [each.arguments for each in deltas] == ['{"city": "Pa', "ris", '"', "}"]


def test_almost_json_is_repaired() -> None:
    written = '<tool_call>{"name": "get_weather", "arguments": {"city": "a\nb\t\\d \\u00e4 \\u12 \\" c"}}</tool_call>'
    for pieces in ((written,), tuple(written)):
        (_, [one]) = parse(HERMES, *pieces)
        assert json.loads(one.arguments) == {"city": 'a\nb\t\\d ä \\u12 " c'}


def test_text_that_cannot_be_a_marker_goes_out_at_once() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.push("Hello") == ["Hello"]
    assert parser.push(" <to") == []
    assert parser.push("ast>") == [" <toast>"]
    assert parser.finish() == []


def test_ids_differ_and_look_like_openai_s() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    good = '<tool_call>{"name": "get-time_2", "arguments": {}}</tool_call>'
    first, second = [each.id for each in parser.push(good * 2) if isinstance(each, ToolCallDelta)]
    assert first != second
    assert first.startswith("call_") and first[5:].isalnum()


SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
ARGUMENTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)
CALLS = st.lists(st.tuples(st.sampled_from([tool.name for tool in TOOLS]), ARGUMENTS), min_size=1, max_size=3)


def cut(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


@st.composite
def cut_answers(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    whole = draw(text)
    return whole, cut(draw, whole)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(JSON_FORMATS), calls=CALLS, ascii_only=st.booleans(), compact=st.booleans(), data=st.data())
def test_calls_come_back_as_they_were_written(
    form: ToolFormat, calls: list[tuple[str, dict[str, Any]]], ascii_only: bool, compact: bool, data: st.DataObject
) -> None:
    separators = (",", ":") if compact else None
    written = [
        json.dumps({"name": name, form.arguments_key: arguments}, ensure_ascii=ascii_only, separators=separators)
        for name, arguments in calls
    ]
    text = form.separator.join(each if form.begins_bare else f"{form.begin}\n{each}\n{form.end}" for each in written)
    _, pieces = data.draw(cut_answers(st.just(text)))
    rest, parsed = parse(form, *pieces)
    assert rest == ""
    assert [(each.name, json.loads(each.arguments)) for each in parsed] == calls


@settings(max_examples=150, deadline=None)
@given(values=st.lists(st.text() | st.just("</longcat_arg_valu"), min_size=1, max_size=3), number=st.integers(), data=st.data())
@pytest.mark.parametrize("form", [LONGCAT_XML, QWEN_CODER])
def test_tagged_strings_come_back_as_they_are(form: ToolFormat, values: list[str], number: int, data: st.DataObject) -> None:
    tags, line = form.tags, "\n" if form is QWEN_CODER else ""
    assert tags is not None
    pairs = "".join(
        f"{tags.key_begin}city{tags.key_end}{tags.value_begin}{line}{value}{line}{tags.value_end}\n"
        f"{tags.key_begin}days{tags.key_end}{tags.value_begin}{line}{number}{line}{tags.value_end}\n"
        for value in values
    )
    end = "" if tags.is_end_shared else tags.end
    text = f"{form.begin}{tags.name_begin}get_weather{tags.name_end}\n{pairs}{end}{form.end}"
    _, pieces = data.draw(cut_answers(st.just(text)))
    rest, [one] = parse(form, *pieces)
    assert rest == ""
    expected = [("city", value) if index == 0 else ("days", number) for value in values for index in range(2)]
    assert json.loads(one.arguments, object_pairs_hook=list) == expected


FRAGMENTS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<longcat_tool_call>",
        "</longcat_tool_call>",
        "<|python_tag|>",
        "; ",
        "<function=get_weather>",
    ),
    *("<parameter=city>", "</parameter>", "</function>", "<longcat_arg_key>", "</longcat_arg_key>", "<longcat_arg_value>"),
    *(
        "</longcat_arg_value>",
        "get_weather",
        '{"name": "get_weather", ',
        '"arguments": ',
        '"parameters": ',
        '{"city": "Paris"}',
        "}",
    ),
    *("{", "[", '"', "\\", "\n", " ", "<", "12", "nul", ",", '"name": "get_weather"', "x"),
)


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from([HERMES, LONGCAT, LLAMA3]),
    answer=cut_answers(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)),
)
def test_any_cut_gives_the_same_and_nothing_raises(form: ToolFormat, answer: tuple[str, list[str]]) -> None:
    whole, pieces = answer
    expected = parse(form, whole)
    assert parse(form, *pieces) == expected
    assert parse(form, *whole) == expected
    if not expected[1]:
        assert expected[0] == whole


@pytest.mark.parametrize(
    ("name", "template", "form"),
    [
        ("auto", "{{ '<longcat_tool_call>' }}", LONGCAT),
        ("auto", "{{ '<longcat_tool_call><longcat_arg_key>' }}", LONGCAT_XML),
        ("auto", "{{ '<tool_call>' }}", HERMES),
        ("auto", "{{ '<tool_call><function=' }}", QWEN_CODER),
        ("auto", """{{ '<|start_header_id|>' }}{{ '{"name": "' + tool.name + '", ' }}{{ '"parameters": ' }}""", LLAMA3),
        ("auto", "{{ '<|im_start|>' }}", HERMES),
        ("llama3", "", LLAMA3),
        ("hermes", "<longcat_tool_call>", HERMES),
        ("none", "<tool_call>", None),
    ],
)  # fmt: skip
def test_the_format_follows_the_template(name: Any, template: str, form: ToolFormat | None) -> None:
    assert format_of(name, template) is form


def test_a_form_of_calls_that_cannot_be_read_is_none() -> None:
    class Unread(CallReader):
        """A form without its own `feed`."""

    with pytest.raises(TypeError, match="feed"):
        Unread({})  # type: ignore[abstract]
