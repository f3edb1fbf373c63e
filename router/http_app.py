"""The HTTP application: OpenAI's endpoints and those for operators."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from router.http_answer import RawResponse
from router.http_api import OpenAiFront
from router.model import ModelInfo
from router.openai_errors import error_body
from router.openai_requests import ChatRequest, CompletionRequest
from router.status import Status
from telemetry.metrics import Metrics


def build_app(front: OpenAiFront, status: Status, model: ModelInfo, metrics: Metrics, started_at: int) -> FastAPI:
    """Routes only: no state of its own, no middleware (each would cost every token)."""
    app = FastAPI(title="Serval", description="OpenAI-compatible API of a Serval router.", version="1")
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    _add_openai(app, front, model, started_at)
    _add_operators(app, status, metrics)
    return app


def _add_openai(app: FastAPI, front: OpenAiFront, model: ModelInfo, started_at: int) -> None:
    card = {
        "id": model.name,
        "object": "model",
        "created": started_at,
        "owned_by": "serval",
        "max_model_len": model.max_model_len,
        "vocab_size": model.vocab_size,
    }

    @app.post("/v1/chat/completions", response_model=None, openapi_extra=_body_of(ChatRequest))
    async def chat_completions(http: HttpRequest) -> Response:
        return await front.chat(http)

    @app.post("/v1/completions", response_model=None, openapi_extra=_body_of(CompletionRequest))
    async def completions(http: HttpRequest) -> Response:
        return await front.completion(http)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> dict[str, Any] | Response:
        if name != model.name:
            return RawResponse(404, error_body(f"the model {name[:64]!r} does not exist", 404, "model", "model_not_found"), [])
        return card


def _add_operators(app: FastAPI, status: Status, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives; says nothing of the workers."""
        return {"status": "ok"}

    @app.get("/ready", response_model=None)
    async def ready() -> dict[str, str] | Response:
        reason = status.why_not_ready()
        return {"status": "ready"} if reason is None else RawResponse(503, error_body(reason, 503), [])

    @app.get("/workers")
    async def workers() -> list[dict[str, Any]]:
        return status.workers()

    @app.get("/sd/prometheus")
    async def prometheus_targets() -> list[dict[str, Any]]:
        """Prometheus' http_sd format: this router and every live worker."""
        return status.scrape_targets()

    @app.get("/metrics", response_model=None)
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")


def _body_of(kind: Callable[..., Any]) -> dict[str, Any]:
    schema = kind.model_json_schema()  # type: ignore[attr-defined]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _on_http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    response = RawResponse(error.status_code, error_body(message, error.status_code), [])
    response.headers.update(error.headers or {})
    return response


async def _on_bug(http: HttpRequest, error: Exception) -> Response:
    return RawResponse(500, error_body("the router failed; its log says why", 500, None, "internal"), [])
