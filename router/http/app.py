"""The HTTP application: OpenAI's endpoints and those for operators."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from router.dashboard.page import add_dashboard
from router.http.answer import RawResponse
from router.http.door import Door, Visit
from router.http.openapi import BODY_ERRORS, GENERATION_ERRORS, body_of, describe, responses
from router.http.openapi_models import (
    ChatCompletion,
    Completion,
    Detokenized,
    ModelCard,
    ModelList,
    ResponseBody,
    Tokenized,
    Version,
)
from router.http.openapi_models import Status as StatusBody
from router.http.shortcuts import Shortcuts, bug_response
from router.http.status import Status
from router.model import ModelInfo
from router.openai.errors import error_body
from router.openai.front import OpenAiFront
from router.openai.requests import ChatRequest, CompletionRequest
from router.openai.tokens import DetokenizeRequest, TokenizeRequest, TokensFront
from router.responses.front import ResponsesFront
from router.responses.requests import ResponsesRequest
from telemetry.metrics import Metrics


@dataclass(frozen=True)
class Fronts:
    """Who answers which endpoints."""

    door: Door
    openai: OpenAiFront
    responses: ResponsesFront
    tokens: TokensFront


def build_app(
    fronts: Fronts,
    status: Status,
    dashboard: Callable[[], bytes],
    model: ModelInfo,
    metrics: Metrics,
    started_at: int,
    needs_key: bool = False,
) -> FastAPI:
    """Routes only: no state of its own, no middleware (each would cost every token). `needs_key` is what /openapi.json says; the
    door decides."""
    app = FastAPI(title="Serval", description="OpenAI-compatible API of a Serval router.", version=version("serval"))
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    _add_openai(app, fronts.openai)
    _add_responses(app, fronts.responses)
    _add_models(app, fronts.door, model, started_at)
    _add_tokens(app, fronts.tokens)
    _add_operators(app, status, metrics)
    add_dashboard(app, dashboard)
    describe(app, (ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest, DetokenizeRequest), model.name, needs_key)
    return app


def with_shortcuts(app: FastAPI, fronts: Fronts) -> ASGIApp:
    """`app`, with a shorter way to the endpoints that stream."""
    endpoints = {
        "/v1/chat/completions": fronts.openai.chat,
        "/v1/completions": fronts.openai.completion,
        "/v1/responses": fronts.responses.create,
    }
    return Shortcuts(app, endpoints)


def _add_openai(app: FastAPI, front: OpenAiFront) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=None,
        openapi_extra=body_of(ChatRequest),
        responses=responses(ChatCompletion, *GENERATION_ERRORS, streams=True),
    )
    async def chat_completions(http: HttpRequest) -> Response:
        return await front.chat(http)

    @app.post(
        "/v1/completions",
        response_model=None,
        openapi_extra=body_of(CompletionRequest),
        responses=responses(Completion, *GENERATION_ERRORS, streams=True),
    )
    async def completions(http: HttpRequest) -> Response:
        return await front.completion(http)


def _add_responses(app: FastAPI, front: ResponsesFront) -> None:
    @app.post(
        "/v1/responses",
        response_model=None,
        openapi_extra=body_of(ResponsesRequest),
        responses=responses(ResponseBody, *GENERATION_ERRORS, streams=True),
    )
    async def create_response(http: HttpRequest) -> Response:
        return await front.create(http)


def _add_models(app: FastAPI, door: Door, model: ModelInfo, started_at: int) -> None:
    card = {
        "id": model.name,
        "object": "model",
        "created": started_at,
        "owned_by": "serval",
        "max_model_len": model.max_model_len,
        "vocab_size": model.vocab_size,
    }

    @app.get("/v1/models", response_model=None, responses=responses(ModelList, 401))
    async def models(http: HttpRequest) -> Response:
        async def handle(visit: Visit) -> Response:
            return RawResponse(200, orjson.dumps({"object": "list", "data": [card]}), visit.headers)

        return await door.let_in(http, handle)

    @app.get("/v1/models/{name:path}", response_model=None, responses=responses(ModelCard, 401, 404))
    async def one_model(http: HttpRequest, name: str) -> Response:
        async def handle(visit: Visit) -> Response:
            if name == model.name:
                return RawResponse(200, orjson.dumps(card), visit.headers)
            message = f"the model {name[:64]!r} does not exist"
            return RawResponse(404, error_body(message, 404, "model", "model_not_found"), visit.headers)

        return await door.let_in(http, handle)


def _add_tokens(app: FastAPI, front: TokensFront) -> None:
    @app.post(
        "/tokenize", response_model=None, openapi_extra=body_of(TokenizeRequest), responses=responses(Tokenized, *BODY_ERRORS)
    )
    async def tokenize(http: HttpRequest) -> Response:
        return await front.tokenize(http)

    @app.post(
        "/detokenize",
        response_model=None,
        openapi_extra=body_of(DetokenizeRequest),
        responses=responses(Detokenized, *BODY_ERRORS),
    )
    async def detokenize(http: HttpRequest) -> Response:
        return await front.detokenize(http)


def _add_operators(app: FastAPI, status: Status, metrics: Metrics) -> None:
    @app.get("/version", responses=responses(Version))
    async def serval_version() -> dict[str, str]:
        return {"version": app.version}

    @app.get("/health", responses=responses(StatusBody))
    async def health() -> dict[str, str]:
        """The process lives; says nothing of the workers."""
        return {"status": "ok"}

    @app.get("/ready", response_model=None, responses=responses(StatusBody, 503))
    async def ready() -> dict[str, str] | Response:
        """It can answer: a prefill and a decode worker are live."""
        reason = status.why_not_ready()
        return {"status": "ready"} if reason is None else RawResponse(503, error_body(reason, 503))

    @app.get("/workers")
    async def workers() -> list[dict[str, Any]]:
        return status.workers()

    @app.get("/sd/prometheus")
    async def prometheus_targets() -> list[dict[str, Any]]:
        """Prometheus' http_sd format: this router and every live worker."""
        return status.scrape_targets()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")


async def _on_http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    response = RawResponse(error.status_code, error_body(message, error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _on_bug(http: HttpRequest, error: Exception) -> Response:
    return bug_response()
