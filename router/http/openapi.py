"""/openapi.json: the endpoints' bodies and every status that can come.

Bodies are read by router/openai/parse.py and not by FastAPI, so their schemas are put in here.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from router.http.openapi_models import ErrorBody
from router.openai.parse import ACCEPTED_AND_UNUSED, REFUSED_BUT_FOR

_REFERENCE = "#/components/schemas/{model}"
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
    "description": "One of the server-sent events that the reply is made of where stream is true.",
}
_EVENTS = {"text/event-stream": {"schema": {"description": "Server-sent events, where stream is true."}}}

_ERRORS = {
    400: "The request can never be served as it is; `param` names what to change.",
    401: "No key, or one that is not known.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "The caller's own limit is reached; Retry-After says when to come back.",
    500: "A bug of this server.",
    503: "The cluster cannot take it now; Retry-After says when to come back.",
    504: "The request's deadline passed.",
}
BODY_ERRORS = (400, 401, 408, 413, 500)
GENERATION_ERRORS = (*BODY_ERRORS, 429, 503, 504)


def responses(model: type[BaseModel], *errors: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses`: the reply, and the errors that can come in its place."""
    reply: dict[str, Any] = {"model": model, "description": "The reply."}
    if streams:
        reply["content"] = _EVENTS
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _ERRORS[status]} for status in errors
    }
    return {200: reply, **refusals}


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """FastAPI's `openapi_extra` of an endpoint that reads its body itself."""
    schema = {"$ref": _REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, kinds: Sequence[type[BaseModel]], model: str, needs_key: bool) -> None:
    """Makes `app` describe itself; `kinds` are the bodies that `body_of` refers to. Call after the last route is added."""
    schema = app.openapi()  # FastAPI keeps it, until a route is added
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    _, bodies = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REFERENCE)
    components.setdefault("schemas", {}).update(bodies["$defs"])
    for kind in kinds:
        _complete(components["schemas"][kind.__name__], model)
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            # FastAPI's own: it validates nothing here.
            operation["responses"].pop("422", None)
            if _is_guarded(path):
                operation["security"] = [{"bearer": []}] if needs_key else [{"bearer": []}, {}]


def _is_guarded(path: str) -> bool:
    return path.startswith("/v1/") or path in ("/tokenize", "/detokenize")


def _complete(body: dict[str, Any], model: str) -> None:
    """What the model of a body does not say: the one name that is served, and the fields that are read before it."""
    properties = body["properties"]
    if "stream" not in properties:
        properties["model"] = {"enum": [model, None]}
        return
    properties["model"] = {"type": "string", "enum": [model]}
    for name in ACCEPTED_AND_UNUSED:
        properties.setdefault(name, {"description": "Accepted; it changes no answer."})
    for name, values in REFUSED_BUT_FOR.items():
        properties.setdefault(name, {"enum": [None, *values], "description": "Other values are refused: not supported."})
