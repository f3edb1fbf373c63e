"""Renders a model's chat template as Hugging Face models expect it (transformers: "Chat templates"), without transformers.

The template comes with the checkpoint, so it runs in Jinja's immutable sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import ConfigError, InvalidRequest
from router.model import read_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Templates ask whether these are none, and an undefined name is not.
_NOTHING_ELSE = {"tools": None, "documents": None}


class ChatTemplate:
    """One compiled template with the model's special tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"model_dir: its chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate | None":
        """The folder's template (chat_template.jinja, or in tokenizer_config.json), None where it has none."""
        config = read_json(folder / "tokenizer_config.json") or {}
        file = folder / "chat_template.jinja"
        source = file.read_text() if file.is_file() else config.get("chat_template")
        if isinstance(source, list):
            source = {each["name"]: each["template"] for each in source}.get("default")
        if source is None:
            return None
        special = {**(read_json(folder / "special_tokens_map.json") or {}), **config}
        return cls(source, {name: _text_of(special[name]) for name in _SPECIAL if special.get(name)})

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt up to where the assistant speaks. Raises InvalidRequest where the template refuses the messages."""
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **_NOTHING_ELSE, **self._special_tokens
            )
        except (TemplateError, TypeError) as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {error}", "messages") from error


def _text_of(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
