"""RouterLink's server side: a worker's stream, from Hello to its end."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from protocol import cluster_pb2, cluster_pb2_grpc
from protocol.malformed import MALFORMED
from protocol.peer_guard import peer_roles
from router.dispatch import Dispatcher
from router.workers import POOL_NAMES, Membership, RefusedWorker, Worker

logger = logging.getLogger(__name__)


class _Unhandled(Exception):
    """A message met a bug of ours. What it said is lost, so the stream ends: requests go on elsewhere, and the worker redials."""


class _Unreadable(_Unhandled):
    """A worker sent bytes that are no message."""


class RouterLinkService(cluster_pb2_grpc.RouterLinkServicer):
    """Membership is the set of these streams: a worker is in from Welcome until its stream ends, for whatever reason."""

    def __init__(
        self,
        members: Membership,
        dispatcher: Dispatcher,
        hello_timeout_s: float,
        on_false_role: Callable[[], None] = lambda: None,
    ) -> None:
        self._members = members
        self._dispatcher = dispatcher
        self._hello_timeout_s = hello_timeout_s
        self._on_false_role = on_false_role

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        worker = await self._welcome(context)
        logger.info("%s %s joined from %s", worker.pool, worker.name, worker.hello.peer.address)
        writing = asyncio.create_task(_write(worker, context), name=f"to-{worker.name}")
        reading = asyncio.create_task(self._read(worker, context), name=f"from-{worker.name}")
        reason, has_died = "its stream broke", True
        try:
            ends: list[asyncio.Future[Any]] = [writing, reading, worker.end_reason]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if worker.end_reason.done():
                reason = worker.end_reason.result()
            elif reading.done():
                reason = _why_reading_ended(reading.exception())
                has_died = not isinstance(reading.exception(), _Unhandled)
        finally:
            # First the membership, at once and without an await: its requests go on elsewhere.
            self._members.leave(worker, reason, has_died=has_died)
            for task in (writing, reading):
                task.cancel()
            await asyncio.gather(writing, reading, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"the router ended the stream: {reason}")

    async def _welcome(self, context: Any) -> Worker:
        try:
            first = await asyncio.wait_for(context.read(), self._hello_timeout_s)
        except TimeoutError:
            await _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello came")
        if first in (grpc.aio.EOF, MALFORMED) or first.WhichOneof("kind") != "hello":  # type: ignore[attr-defined]
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with Hello")
        roles = peer_roles(context)
        if roles is not None and POOL_NAMES.get(first.hello.role) not in roles:
            self._on_false_role()
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, "the certificate is for another role than Hello's")
        try:
            worker = self._members.join(first.hello, asyncio.get_running_loop().time())
        except RefusedWorker as error:
            logger.warning("refused %s: %s", first.hello.peer.name, error)
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return worker

    async def _read(self, worker: Worker, context: Any) -> None:
        loop = asyncio.get_running_loop()
        while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            if message is MALFORMED:
                raise _Unreadable
            worker.heard_at = loop.time()
            kind = message.WhichOneof("kind")
            try:
                self._take(worker, message, kind)
            except Exception as error:
                logger.exception("%s %s: its message of kind %s could not be handled", worker.pool, worker.name, kind)
                raise _Unhandled from error

    def _take(self, worker: Worker, message: cluster_pb2.FromWorker, kind: str | None) -> None:
        if kind == "step":
            self._dispatcher.on_step(worker, message.step)
        elif kind == "load":
            self._dispatcher.on_load(worker, message.load, worker.heard_at)
        elif kind == "cache":
            self._dispatcher.on_cache(worker, message.cache)
        elif kind == "draining":
            worker.is_draining = True


def _why_reading_ended(error: BaseException | None) -> str:
    if isinstance(error, _Unreadable):
        return "it said what is no message"
    if isinstance(error, _Unhandled):
        return "the router failed to handle what it said"
    return "its stream broke" if error is not None else "it closed its stream"


async def _write(worker: Worker, context: Any) -> None:
    while True:
        await context.write(await worker.outbox.get())


async def _refuse(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")
