"""serval.v1.Serval: the gRPC front. Status codes say what the HTTP front says by status."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from protocol import serval_pb2, serval_pb2_grpc
from protocol.errors import ServalError
from protocol.outcomes import Outcome
from router import calls
from router.accounting import Accounting
from router.admission import Admission
from router.answers import Answers
from router.call_trace import CallTrace, Operation, context_of
from router.dispatch import Dispatcher
from router.grpc.admission import GrpcAdmission
from router.grpc.choice import GrpcChoice
from router.model import ModelInfo
from router.request import Request
from router.request_id import request_ids
from router.session import session_in
from router.tenants.caller import ANONYMOUS, Caller
from router.text.tokenizer import TextTokenizer
from telemetry.tracing import OFF, Tracing

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
    Outcome.POISON: grpc.StatusCode.FAILED_PRECONDITION,
    Outcome.INTERNAL: grpc.StatusCode.INTERNAL,
}


_STATUS_S = 1.0
"""How long a status may take to leave that goes behind bytes which nobody takes."""


class _Stalled(Exception):
    """The client takes nothing of what it asked for."""


class ServalService(serval_pb2_grpc.ServalServicer):
    """Each call owns its requests: when the call ends, for whatever reason, the dispatcher hears of it."""

    def __init__(
        self,
        model: ModelInfo,
        tokenizer: TextTokenizer,
        admission: Admission,
        dispatcher: Dispatcher,
        accounting: Accounting,
        caller_of: Callable[[str | None], Caller],
        client_stall_s: float,
        tracing: Tracing = OFF,
    ) -> None:
        """`client_stall_s`: how long one message may wait for its client to take it."""
        self._model = model
        self._tokenizer = tokenizer
        self._admission = admission
        self._grpc_admission = GrpcAdmission(admission, model, tokenizer)
        self._dispatcher = dispatcher
        self._accounting = accounting
        self._caller_of = caller_of
        self._client_stall_s = client_stall_s
        self._tracing = tracing

    async def Generate(self, request: serval_pb2.GenerateRequest, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        remaining_s = context.time_remaining()
        deadline = None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s
        client_id, request_id = request_ids(_metadata(context).get("x-request-id"))
        caller = ANONYMOUS
        try:
            caller = self._caller(context)
            operation: Operation = "chat" if request.WhichOneof("prompt") == "chat" else "text_completion"
            trace = CallTrace(self._tracing, operation, self._model.name, context_of(_metadata(context)))
            with trace.accepting():
                self._dispatcher.check_capacity(caller, remaining_s)
                call = await self._grpc_admission.generate(request, session_in(_metadata(context)))
                answers = calls.start(self._dispatcher, call, request_id, caller, remaining_s, trace.context)
        except ServalError as error:
            await self._refuse(context, error, caller)
        try:
            trace.describe(call, answers, is_stream=True)
            choices = [GrpcChoice(index, each, call.tools.parser()) for index, each in enumerate(answers.requests)]
            await answers.wait_started()
            await context.send_initial_metadata([*_reply_metadata(context, answers, client_id), *trace.headers])
            async for pieces in answers.pieces():
                if any(piece.is_last for piece in pieces):
                    await answers.wait_settled()
                for piece in pieces:
                    await self._write(context, choices[piece.choice].response(piece))
            failed = answers.failed
        except _Stalled:
            calls.abandon(self._dispatcher, answers)  # now, and not when the status has left
            await self._give_up(context)
            return
        finally:
            late = deadline is not None and asyncio.get_running_loop().time() >= deadline
            calls.abandon(self._dispatcher, answers, Outcome.DEADLINE if late else Outcome.CANCELLED)
            trace.finish(answers)
        if failed is not None and failed.end is not None:
            await context.abort(CODES[failed.end.outcome], _message(failed), _retry_after(failed.end.retry_after_s))

    async def _write(self, context: Any, response: serval_pb2.GenerateResponse) -> None:
        """Returns when the transport has taken it, which it does no faster than the client reads. Meanwhile what comes of the
        answer gathers in the request, and goes out in one message. Raises _Stalled."""
        try:
            async with asyncio.timeout(self._client_stall_s):
                await context.write(response)
        except TimeoutError:
            raise _Stalled from None

    async def _give_up(self, context: Any) -> None:
        """The client will hear of it should it read again; all that is kept for it is the message that waits."""
        message = f"the client took nothing for {self._client_stall_s:g} s (client_stall_s)"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_S):
                await context.abort(CODES[Outcome.CANCELLED], message)

    async def GetModelInfo(  # noqa: N802
        self, request: serval_pb2.GetModelInfoRequest, context: Any
    ) -> serval_pb2.GetModelInfoResponse:
        await self._let_in(context)
        return serval_pb2.GetModelInfoResponse(
            model=self._model.name, max_model_len=self._model.max_model_len, vocab_size=self._model.vocab_size
        )

    async def Tokenize(  # noqa: N802
        self, request: serval_pb2.TokenizeRequest, context: Any
    ) -> serval_pb2.TokenizeResponse:
        await self._let_in(context)
        try:
            tokens = await self._grpc_admission.tokenize(request)
        except ServalError as error:
            await self._refuse(context, error)
        return serval_pb2.TokenizeResponse(token_ids=tokens, max_model_len=self._model.max_model_len)

    async def Detokenize(  # noqa: N802
        self, request: serval_pb2.DetokenizeRequest, context: Any
    ) -> serval_pb2.DetokenizeResponse:
        await self._let_in(context)
        try:
            self._admission.check_model(request.model)
            self._admission.check_tokens(request.token_ids, "token_ids")
        except ServalError as error:
            await self._refuse(context, error)
        return serval_pb2.DetokenizeResponse(text=self._tokenizer.decode(request.token_ids))

    def _caller(self, context: Any) -> Caller:
        return self._caller_of(_metadata(context).get("authorization"))

    async def _let_in(self, context: Any) -> None:
        try:
            self._caller(context)
        except ServalError as error:
            await self._refuse(context, error)

    async def _refuse(self, context: Any, error: ServalError, caller: Caller = ANONYMOUS) -> NoReturn:
        self._accounting.refused(error, caller)
        await context.abort(CODES[error.outcome], str(error), _retry_after(error.retry_after_s))
        raise AssertionError("abort raises") from error


def _metadata(context: Any) -> dict[str, str]:
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


def _reply_metadata(context: Any, answers: Answers, client_id: str) -> list[tuple[str, str]]:
    """What is known when the stream begins; the rest is in each answer's Finish."""
    first = answers.requests[0]
    workers = (("x-serval-decode-worker", first.decode), ("x-serval-prefill-worker", first.prefill))
    metadata = [("x-request-id", client_id), *((name, worker.name) for name, worker in workers if worker is not None)]
    if _metadata(context).get("x-serval-debug") == "1":
        metadata.append(("x-serval-placement", json.dumps(dict(first.explanation))))
    return metadata


def _message(request: Request) -> str:
    assert request.end is not None
    return request.end.message or f"the request ended: {request.end.outcome}"


def _retry_after(retry_after_s: float | None) -> tuple[tuple[str, str], ...]:
    """Trailing metadata, in seconds."""
    return () if retry_after_s is None else (("retry-after", f"{retry_after_s:.3f}"),)
