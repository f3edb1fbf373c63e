"""From an HTTP body to a request model, with errors that name one field in the client's own words."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from protocol.errors import InvalidRequest
from router.openai.messages import ROLES

AnyRequest = TypeVar("AnyRequest", bound=BaseModel)

ACCEPTED_AND_UNUSED = frozenset(("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_retention"))
"""They change no answer: accepted and not used."""

REFUSED_BUT_FOR: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
    "best_of": (1,),
    "echo": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
}
"""Known from OpenAI or vLLM and not done: refused unless null or one of these values, which ask for nothing."""


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """The request in an HTTP body. Raises InvalidRequest naming the first field that is wrong."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest("the body must be a JSON object")
    return validated(kind, content)


def validated(kind: type[AnyRequest], content: Mapping[str, Any]) -> AnyRequest:
    """`content` as a request. Raises InvalidRequest naming the first field that is wrong."""
    asked = {name: value for name, value in content.items() if not _asks_for_nothing(kind, name, value)}
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise _named(kind, error) from error


def _asks_for_nothing(kind: type[BaseModel], name: str, value: Any) -> bool:
    if name in kind.model_fields:
        return value is None and not kind.model_fields[name].is_required()
    if name in ACCEPTED_AND_UNUSED:
        return True
    if (nothing := REFUSED_BUT_FOR.get(name)) is None:
        return False
    if value is None or any(value == each and type(value) is type(each) for each in nothing):
        return True
    raise InvalidRequest(f"{name} is not supported by this server", name)


def _named(kind: type[BaseModel], error: ValidationError) -> InvalidRequest:
    errors = error.errors(include_url=False)
    # A union reports every member's complaint; the one that got furthest is the one that was meant.
    first = max((each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]), key=lambda each: len(each["loc"]))
    if first["type"] == "extra_forbidden":
        *above, name = first["loc"]
        field = f"{_path(kind, above)}.{str(name)[:64]}".removeprefix(".")
        return InvalidRequest(f"unrecognised request argument: {field}", field)
    field = _path(kind, first["loc"])
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field += "." + str(first["ctx"]["discriminator"]).strip("'")
    return InvalidRequest(f"{field}: {first['msg'].removeprefix('Value error, ')}", field)


def _path(kind: type[BaseModel], location: Sequence[int | str]) -> str:
    # Pydantic's path also names members of unions, which are no fields. A message's role is one, and `user` a field too: on top.
    fields = _field_names(kind)
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[:1]]
    for part in location[1:]:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif part in fields and part not in ROLES:
            parts.append(f".{part}")
    return "".join(parts).removeprefix(".")


@cache
def _field_names(kind: type[BaseModel]) -> frozenset[str]:
    schema = kind.model_json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    return frozenset(name for model in models for name in model.get("properties", {}))
