"""Chat templates with tools: as transformers renders them, and for templates that know none."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InvalidRequest
from router.text.chat_template import ChatTemplate
from router.tool_calls.formats import HERMES, LLAMA3, LONGCAT, LONGCAT_XML, ToolFormat, format_of
from router.tool_calls.tools import Tool

WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string", "description": "A city <&> town"}}, "required": ["city"]},
)
TOOLS = [WEATHER, Tool("now")]
USER = {"role": "user", "content": "What's the weather?"}


def called(*names: str, content: str = "") -> dict[str, Any]:
    calls = [
        {
            "id": f"call_{name}",
            "type": "function",
            "function": {"name": name, "arguments": '{"city": "Köln", "days": [1, true]}'},
        }
        for name in names
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(name: str, content: str = '{"c": 20}') -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": f"call_{name}"}


CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, called("get_weather"), result("get_weather"), {"role": "assistant", "content": "20."}, USER],
    [{"role": "system", "content": "Be brief."}, USER, called("now", content="Hm."), result("now")],
]

# The shapes of the families' templates, in fewer words.
QWEN = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}

</tools>
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "user" or (message.role == "assistant" and not message.tool_calls) -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% elif message.role == "assistant" -%}
<|im_start|>assistant
{%- if message.content %}
{{ '\\n' + message.content }}{% endif %}
{%- for call in message.tool_calls %}
{%- set call = call.function if call.function is defined else call %}
<tool_call>
{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == "tool" -%}
{%- if messages[loop.index0 - 1].role != "tool" %}<|im_start|>user{% endif %}
<tool_response>
{{ message.content }}
</tool_response>{% if loop.last or messages[loop.index0 + 1].role != "tool" %}<|im_end|>
{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

HERMES_2 = """{{ bos_token }}{% if tools is iterable and tools | length > 0 %}<tools> {% for tool in tools %}
{%- if tool.function is defined %}{% set tool = tool.function %}{% endif -%}
{{ tool.name + ' - ' + tool.description }}{% for name, field in tool.parameters.properties | items %} {{ name }}: {{ field.type }}
{%- endfor %}{{ tool.parameters | tojson }}{% endfor %} </tools> <tool_call>{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}
{%- if not message.name is defined %}{{ raise_exception("a result needs a name") }}{% endif %}
<|im_start|>tool
{"name": "{{ message.name }}", "content": {{ message.content | tojson }}}<|im_end|>
{% elif message.role == "assistant" and message.tool_calls is defined -%}
<|im_start|>assistant{% for call in message.tool_calls %}
<tool_call>
{ "arguments": {{ call.function.arguments | tojson }}, "name": "{{ call.function.name }}"}
</tool_call>{% endfor %}<|im_end|>
{% else -%}
<|im_start|>{{ message.role + '\\n' + message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA_3 = """{{- bos_token }}{%- if not tools is defined %}{% set tools = none %}{% endif -%}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif -%}
<|start_header_id|>system<|end_header_id|>

{% if tools is not none %}Environment: ipython
{% endif %}{{ system }}<|eot_id|>
{%- if not tools is none %}
{%- if messages | length == 0 %}{{ raise_exception("no user message") }}{% endif %}
{%- set first = messages[0]['content'] | trim %}{% set messages = messages[1:] -%}
<|start_header_id|>user<|end_header_id|>

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.
{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}{{ first }}<|eot_id|>{% endif %}
{%- for message in messages %}
{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- elif 'tool_calls' in message %}
{%- if not message.tool_calls | length == 1 %}{{ raise_exception("one call at a time") }}{% endif %}
{%- set call = message.tool_calls[0].function -%}
<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", {{ '"parameters": ' }}{{ call.arguments | tojson }}}<|eot_id|>
{%- else -%}
<|start_header_id|>ipython<|end_header_id|>

{{ {"output": message.content} | tojson }}<|eot_id|>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

LONGCAT_1 = """{%- set ns = namespace(round=0, call='') %}
{%- if tools %}## Tools
{% for tool in tools %}### {{ tool.function.name }}: {{ tool.function.description }}
{{ tool.function.parameters | tojson(indent=2) }}
{% endfor %}<longcat_tool_call>

## Messages
{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}SYSTEM:{{ message.content }}
{%- elif message.role == 'user' %}
{{- ' ' if not loop.first }}[Round {{ ns.round }}] USER:{{ message.content }} ASSISTANT:{% set ns.round = ns.round + 1 %}
{%- elif message.role == 'tool' %} TOOL:{{ message.content }} ASSISTANT:
{%- else %}{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
{%- set ns.call = {"name": call.function.name, "arguments": call.function.arguments} -%}
<longcat_tool_call>
{{ ns.call | tojson }}
</longcat_tool_call>{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"""

LONGCAT_2 = """{% if tools %}<longcat_tool_call>{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}
{%- for message in messages %}<longcat_{{ message.role }}>{{ message.content }}{% for call in message.tool_calls or [] -%}
<longcat_tool_call>{{ call.function.name }}
{% for key, value in call.function.arguments.items() -%}
<longcat_arg_key>{{ key }}</longcat_arg_key>
<longcat_arg_value>{{ value if value is string else value | tojson }}</longcat_arg_value>
{% endfor %}</longcat_tool_call>{% endfor %}{% endfor %}<longcat_assistant>"""

TEXT_ARGUMENTS = """{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}
{%- for message in messages %}<{{ message.role }}>{{ message.content or '' }}{% for call in message.tool_calls or [] %}
{{- call.function.name + '(' + call.function.arguments + ')' }}{% endfor %}{% endfor %}"""

PRINTED_ARGUMENTS = TEXT_ARGUMENTS.replace(" + '(' + call.function.arguments + ')'", " ~ '(' ~ call.function.arguments ~ ')'")

KNOWN: list[tuple[str, ToolFormat]] = [
    (QWEN, HERMES),
    (HERMES_2, HERMES),
    (LLAMA_3, LLAMA3),
    (LONGCAT_1, LONGCAT),
    (LONGCAT_2, LONGCAT_XML),
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(("source", "form"), KNOWN, ids=["qwen", "hermes", "llama3", "longcat", "longcat_xml"])
def test_prompts_are_those_of_transformers(source: str, form: ToolFormat) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = ChatTemplate(source, SPECIAL)
    assert template.knows_tools
    assert format_of("auto", template.tool_source) is form
    for conversation in CONVERSATIONS:
        [expected], _ = render_jinja_template(
            conversations=[for_transformers(conversation)],
            tools=[tool.for_template() for tool in TOOLS],
            chat_template=source,
            add_generation_prompt=True,
            **SPECIAL,
        )
        assert template.render(conversation, TOOLS) == expected


def for_transformers(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As transformers' documentation writes them: arguments are objects, results have names."""
    changed = json.loads(json.dumps(conversation))
    for message in changed:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        if message["role"] == "tool":
            message["name"] = message["tool_call_id"].removeprefix("call_")
    return list(changed)


@pytest.mark.parametrize("source", [TEXT_ARGUMENTS, PRINTED_ARGUMENTS])
def test_a_template_that_wants_arguments_as_text_gets_them_so(source: str) -> None:
    rendered = ChatTemplate(source, {}).render([USER, called("now")], TOOLS)
    assert rendered.endswith('now({"city": "Köln", "days": [1, true]})')


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def test_a_template_that_knows_no_tools_is_told_in_a_system_message() -> None:
    template = ChatTemplate(CHATML, {})
    assert not template.knows_tools
    system, user = template.render([USER], TOOLS).split("<|im_end|>\n")[:2]
    assert system.startswith("<|im_start|>system\n# Tools")
    assert all(json.dumps(tool.for_template()) in system for tool in TOOLS)
    assert system.endswith('<tool_call>\n{"name": "<function-name>", "arguments": <args-json-object>}\n</tool_call>')
    assert user == "<|im_start|>user\nWhat's the weather?"
    with_system = template.render(CONVERSATIONS[1], TOOLS)
    assert with_system.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert with_system.count("<|im_start|>system") == 1
    assert "<|python_tag|>" not in template.render([USER], TOOLS, LLAMA3)
    assert '{"name": "<function-name>", "parameters": <args-json-object>}' in template.render([USER], TOOLS, LLAMA3)


def test_its_calls_and_results_are_text() -> None:
    conversation = [USER, called("get_weather", "now", content="Hm."), result("get_weather"), result("now", "noon"), USER]
    assert ChatTemplate(CHATML, {}).render(conversation) == (
        "<|im_start|>user\nWhat's the weather?<|im_end|>\n"
        "<|im_start|>assistant\nHm.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": [1, true]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {"city": "Köln", "days": [1, true]}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"c": 20}\n</tool_response>\n'
        "<tool_response>\nnoon\n</tool_response>\nWhat's the weather?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_a_place_for_a_system_message_the_user_s_has_it() -> None:
    rendered = ChatTemplate(NO_SYSTEM, {}).render([USER], TOOLS)
    assert rendered.startswith("<|im_start|>user\n# Tools")
    assert "What's the weather?<|im_end|>" in rendered


@pytest.mark.parametrize("arguments", ["[1]", "{", "7", '{"a": "\\ud800"}', '{"\\udc00": 1}', '{"a": NaN}', '{"a": 1e999}'])
@pytest.mark.parametrize("source", [QWEN, CHATML])
def test_arguments_must_be_an_object(source: str, arguments: str) -> None:
    message = called("now")
    message["tool_calls"][0]["function"]["arguments"] = arguments
    with pytest.raises(InvalidRequest) as refused:
        ChatTemplate(source, {}).render([USER, message])
    assert refused.value.field == "messages[1].tool_calls[0].function.arguments"


def test_a_folder_s_template_for_tools_is_used_with_tools_only(tmp_path: Path) -> None:
    words = {"chat_template": [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": QWEN}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    assert template.knows_tools
    assert template.render([USER]) == ChatTemplate(CHATML, {}).render([USER])
    assert template.render([USER], TOOLS) == ChatTemplate(QWEN, {}).render([USER], TOOLS)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(HERMES_2)
    replaced = ChatTemplate.from_folder(tmp_path)
    assert replaced is not None
    assert replaced.tool_source == HERMES_2


def test_training_marks_are_looked_through() -> None:
    assert ChatTemplate("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c", {}).render([USER]) == "abuserc"
