"""Renders a model's chat template as Hugging Face models expect it (transformers: "Chat templates"), without transformers.

The template comes with the checkpoint, so it runs in Jinja's immutable sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import ConfigError, InvalidRequest
from router.model import read_json
from router.text.builtin_templates import builtin_template
from router.tool_calls import prompt
from router.tool_calls.formats import HERMES, ToolFormat
from router.tool_calls.tools import Tool

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Templates ask whether these are none, and an undefined name is not.
_NOTHING_ELSE = {"documents": None}
_PROBE = Tool("probe_function", "Probes.", {"type": "object", "properties": {"x": {"type": "string", "description": "An x."}}})


class ChatTemplate:
    """A model's templates with its special tokens: `source`, and `tool_source` for conversations with tools, where it differs."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], tool_source: str | None = None) -> None:
        self._special_tokens = dict(special_tokens)
        self._template = _compiled(source)
        self._tool_template = self._template if tool_source is None else _compiled(tool_source)
        self.tool_source = source if tool_source is None else tool_source
        """The text that shows how the model was trained to call tools, if it was."""

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate | None":
        """The folder's template (chat_template.jinja, or in tokenizer_config.json), else its family's, None where there is none."""
        config = read_json(folder / "tokenizer_config.json") or {}
        sources = config.get("chat_template") or {}
        if isinstance(sources, str):
            sources = {"default": sources}
        elif isinstance(sources, list):
            sources = {each["name"]: each["template"] for each in sources}
        files = {"default": folder / "chat_template.jinja", "tool_use": folder / "additional_chat_templates" / "tool_use.jinja"}
        sources |= {name: file.read_text() for name, file in files.items() if file.is_file()}
        if "default" not in sources:
            builtin = builtin_template(folder)
            if builtin is None:
                return None
            sources["default"] = builtin
        special = {**(read_json(folder / "special_tokens_map.json") or {}), **config}
        tokens = {name: _text_of(special[name]) for name in _SPECIAL if special.get(name)}
        return cls(sources["default"], tokens, sources.get("tool_use"))

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = (), form: ToolFormat = HERMES) -> str:
        """The prompt up to where the assistant speaks. Messages are OpenAI's, with arguments as text. A template that knows no
        tools is told of them, of calls and of results in plain text, calls in `form`. Raises InvalidRequest where it refuses the
        messages."""
        if not tools and not prompt.has_calls(messages):
            return self._render(self._template, messages)
        try:
            return self._render_with_tools(messages, tools, form)
        except RecursionError as error:
            raise InvalidRequest("messages: arguments or parameters are nested too deeply", "messages") from error

    def _render_with_tools(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], form: ToolFormat) -> str:
        if self.knows_tools:
            ready = prompt.for_template(messages, self._arguments_are_text)
            return self._render(self._tool_template, ready, tools)
        ready = prompt.for_template(messages, arguments_are_text=False)
        return self._render(self._template, prompt.without_tools(ready, tools, form, self._takes_system))

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template tells the model of its tools."""
        return self._shows(self._tool_template, _PROBE.name, [_PROBE])

    @cached_property
    def _takes_system(self) -> bool:
        return self._shows(self._template, "probe of a system message")

    @cached_property
    def _arguments_are_text(self) -> bool:
        return prompt.arguments_are_text(lambda messages: self._render(self._tool_template, messages, [_PROBE]))

    def _shows(self, template: Template, text: str, tools: Sequence[Tool] = ()) -> bool:
        user = {"role": "user", "content": "hi"}
        for messages in ([{"role": "system", "content": "probe of a system message"}, user], [user]):
            try:
                if text in self._render(template, messages, tools):
                    return True
            except InvalidRequest:
                continue
        return False

    def _render(self, template: Template, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> str:
        try:
            return template.render(
                messages=list(messages),
                tools=[tool.for_template() for tool in tools] or None,
                add_generation_prompt=True,
                **_NOTHING_ELSE,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, AttributeError, ValueError, LookupError) as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {error}", "messages") from error


class _Generation(Extension):
    """{% generation %} marks what training counts as the assistant's; here it is only what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compiled(source: str) -> Template:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ConfigError(f"model_dir: its chat template does not compile: {error}") from error


def _text_of(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
