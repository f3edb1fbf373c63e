"""serval.v1.Serval: the gRPC front. Status codes say what the HTTP front says by status."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from protocol import serval_pb2, serval_pb2_grpc
from protocol.errors import ServalError
from protocol.ids import RequestId
from protocol.outcomes import Outcome
from router.accounting import Accounting
from router.admission import Admission
from router.dispatch import Dispatcher
from router.model import ModelInfo
from router.request import Delta, Request
from router.request_id import request_ids

CODES = {
    Outcome.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Outcome.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Outcome.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Outcome.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    Outcome.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Outcome.PREFILL_FAILED: grpc.StatusCode.UNAVAILABLE,
    Outcome.TRANSFER_FAILED: grpc.StatusCode.UNAVAILABLE,
    Outcome.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Outcome.CANCELLED: grpc.StatusCode.CANCELLED,
    Outcome.INTERNAL: grpc.StatusCode.INTERNAL,
}

_REASONS = {Outcome.STOP: serval_pb2.FINISH_REASON_STOP, Outcome.LENGTH: serval_pb2.FINISH_REASON_LENGTH}


class ServalService(serval_pb2_grpc.ServalServicer):
    """Each call owns its request: when the call ends, for whatever reason, the dispatcher hears of it."""

    def __init__(self, model: ModelInfo, admission: Admission, dispatcher: Dispatcher, accounting: Accounting) -> None:
        self._model = model
        self._admission = admission
        self._dispatcher = dispatcher
        self._accounting = accounting

    async def Generate(  # noqa: N802
        self, request: serval_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[serval_pb2.GenerateResponse]:
        remaining_s = context.time_remaining()
        deadline = None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s
        client_id, request_id = request_ids(_given_id(context))
        accepted = await self._accept(request, request_id, context, remaining_s)
        try:
            await accepted.wait_started()
            await context.send_initial_metadata(_metadata(accepted, client_id))
            async for delta in accepted.deltas():
                if accepted.end is None or not accepted.end.outcome.is_success:
                    yield _response(delta)
                else:
                    yield _response(delta, _finish(accepted))
                    return
            assert accepted.end is not None
            if accepted.end.outcome.is_success:
                yield serval_pb2.GenerateResponse(finish=_finish(accepted))
                return
        finally:
            late = deadline is not None and asyncio.get_running_loop().time() >= deadline
            self._dispatcher.abandon(accepted, Outcome.DEADLINE if late else Outcome.CANCELLED)
        await context.abort(CODES[accepted.end.outcome], _message(accepted), _retry_after(accepted.end.retry_after_s))

    async def GetModelInfo(  # noqa: N802
        self, request: serval_pb2.GetModelInfoRequest, context: Any
    ) -> serval_pb2.GetModelInfoResponse:
        return serval_pb2.GetModelInfoResponse(
            model=self._model.name, max_model_len=self._model.max_model_len, vocab_size=self._model.vocab_size
        )

    async def _accept(
        self, request: serval_pb2.GenerateRequest, request_id: RequestId, context: Any, remaining_s: float | None
    ) -> Request:
        try:
            self._dispatcher.check_capacity()
            spec = await self._admission.grpc(request)
            return self._dispatcher.accept(request_id, spec, timeout_s=remaining_s)
        except ServalError as error:
            self._accounting.refused(error)
            await context.abort(CODES[error.outcome], str(error), _retry_after(error.retry_after_s))
            raise AssertionError("abort raises") from error


def _response(delta: Delta, finish: serval_pb2.Finish | None = None) -> serval_pb2.GenerateResponse:
    return serval_pb2.GenerateResponse(
        token_ids=delta.token_ids, text=delta.text, logprobs=[info.logprobs for info in delta.logprobs], finish=finish
    )


def _finish(request: Request) -> serval_pb2.Finish:
    assert request.end is not None
    usage = serval_pb2.Usage(
        prompt_tokens=len(request.spec.prompt),
        completion_tokens=len(request.output),
        cached_tokens=request.cached_tokens,
    )
    return serval_pb2.Finish(reason=_REASONS[request.end.outcome], usage=usage)


def _message(request: Request) -> str:
    assert request.end is not None
    return request.end.message or f"the request ended: {request.end.outcome}"


def _retry_after(retry_after_s: float | None) -> tuple[tuple[str, str], ...]:
    """Trailing metadata, in seconds."""
    return () if retry_after_s is None else (("retry-after", f"{retry_after_s:.3f}"),)


def _given_id(context: Any) -> str | None:
    given = dict(context.invocation_metadata() or ()).get("x-request-id")
    return given if isinstance(given, str) else None


def _metadata(request: Request, client_id: str) -> list[tuple[str, str]]:
    workers = (("x-serval-decode-worker", request.decode), ("x-serval-prefill-worker", request.prefill))
    return [("x-request-id", client_id), *((name, worker.name) for name, worker in workers if worker is not None)]
