"""PrefillService: what decode workers ask of a prefill worker."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from prefill.jobs import Jobs
from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.errors import ServalError
from protocol.outcomes import Outcome

STATUS_OF = {
    Outcome.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Outcome.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Outcome.UNAVAILABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Outcome.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class PrefillService(cluster_pb2_grpc.PrefillServiceServicer):
    """Thin: turns calls into jobs and errors into status codes."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def Introduce(  # noqa: N802
        self, request: cluster_pb2.IntroduceRequest, context: Any
    ) -> cluster_pb2.IntroduceResponse:
        try:
            return cluster_pb2.IntroduceResponse(prefill=await self._jobs.introduce(request))
        except ServalError as error:
            await _abort(context, error)
            raise

    async def Prefill(  # noqa: N802
        self, request: cluster_pb2.PrefillRequest, context: Any
    ) -> AsyncIterator[cluster_pb2.PrefillEvent]:
        try:
            async with contextlib.aclosing(self._jobs.run(request)) as events:
                async for event in events:
                    yield event
        except ServalError as error:
            await _abort(context, error)

    async def Abort(  # noqa: N802
        self, request: cluster_pb2.AbortRequest, context: Any
    ) -> cluster_pb2.AbortResponse:
        return await self._jobs.abort(request)


async def _abort(context: Any, error: ServalError) -> None:
    await context.abort(STATUS_OF.get(error.outcome, grpc.StatusCode.INTERNAL), str(error))
