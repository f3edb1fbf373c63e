"""The engine thread's side of a prefill worker's jobs: what is computed leaves layer by layer, and results go to the event loop."""

import asyncio
import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

from engine.batch import Batch
from engine.engine import Engine
from engine.sequence import SequenceUpdate
from kvtransfer.sender import Sender
from prefill.job import Job
from protocol import cluster_pb2
from protocol.errors import ServalError
from protocol.ids import BlockId, RequestId
from protocol.lifecycle import Event
from telemetry import span_names
from telemetry.tracing import Tracing
from worker.hold import THIRDS, Hold, Point, layers_at


class EngineSide:
    """`on_layer` and `on_computed` run in the engine's thread. `by_key`: the jobs by the engine's name for their sequences; the
    event loop's, which alone changes it."""

    def __init__(self, by_key: Mapping[str, Job], engine: Engine, sender: Sender, tracing: Tracing, hold: Hold) -> None:
        self._by_key = by_key
        self._engine = engine
        self._sender = sender
        self._tracing = tracing
        self._hold = hold
        self._loop = asyncio.get_running_loop()

    def on_layer(self, layer: int, batch: Batch) -> None:
        """Layer `layer`'s new KV of every sequence of the batch is in the pool."""
        for span in batch.spans:
            job = self._by_key.get(span.sequence.request_id)
            if job is None:
                continue
            if job.transfer is None and job.refused is None:
                self._open(job, span.start)
            if job.transfer is not None:
                job.transfer.layer_ready(layer, self._blocks_ready(job, span.end))
        self._hold_at_third(layer, batch)

    def on_computed(self, updates: SequenceOf[SequenceUpdate]) -> None:
        """The results of one engine step."""
        for update in updates:
            job = self._by_key.get(update.request_id)
            if job is not None and update.finish is not None:
                if job.transfer is not None and update.token_ids:
                    job.transfer.compute_done()
                self._loop.call_soon_threadsafe(_resolve, job.computed, update)

    def _open(self, job: Job, start: int) -> None:
        """The engine has given the sequence its blocks: from now on what it computes can leave."""
        job.started_at = time.monotonic()
        job.cached_tokens = start
        self._loop.call_soon_threadsafe(_mark_started, job)
        request, sequence = job.request, job.sequence
        end_block = self._engine.kv_cache.blocks_for(sequence.num_given)
        blocks = [BlockId(block) for block in sequence.blocks[request.first_block : end_block]]
        try:
            job.transfer = self._sender.open(
                RequestId(request.request_id), request.attempt, job.decode_incarnation, _rest_of_lease(job), blocks
            )
        except ServalError as error:
            job.refused = error
        else:
            if self._hold.wants(Point.FIRST_TOKEN):
                job.transfer.limit(layers_at(Point.SECOND_THIRD, job.transfer.layers))
            job.transfer_span = self._tracing.start(span_names.KV_TRANSFER, job.span.context, kind="internal")

    def _hold_at_third(self, layer: int, batch: Batch) -> None:
        """Once a prompt's last chunk is there."""
        for point in THIRDS:
            if self._hold.wants(point):
                jobs = [job for span in batch.spans if (job := self._by_key.get(span.sequence.request_id)) is not None]
                ready = [job for job in jobs if job.is_at(point, layer)]
                self._hold.block(point, [(job.sequence.request_id, job.facts) for job in ready])

    def _blocks_ready(self, job: Job, end: int) -> int:
        """Blocks of the transfer that are complete when tokens [0, end) are: whole ones, and where that is all also the last."""
        is_last = end >= job.sequence.num_given
        blocks = self._engine.kv_cache.blocks_for(end) if is_last else end // self._engine.kv_cache.block_size
        return max(0, blocks - job.request.first_block)


def _rest_of_lease(job: Job) -> cluster_pb2.WriteLease:
    """What is left now of the lease that came with the call: it runs while the prompt waits its turn."""
    lease = cluster_pb2.WriteLease()
    lease.CopyFrom(job.request.lease)
    lease.duration_s = max(0.0, lease.duration_s - (job.started_at - job.accepted_at))
    return lease


def _mark_started(job: Job) -> None:
    if job.lifecycle.can(Event.STARTED):  # not when it was aborted in the meantime
        job.lifecycle.advance(Event.STARTED)


def _resolve(future: asyncio.Future[SequenceUpdate], update: SequenceUpdate) -> None:
    if not future.done():
        future.set_result(update)
