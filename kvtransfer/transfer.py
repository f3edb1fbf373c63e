"""One prompt's KV on its way out: which blocks of which layer are computed, posted and done.

The engine thread calls `layer_ready` and `compute_done`; everything else belongs to the sender thread.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from kvtransfer.blocks import BlockList
from kvtransfer.config import TransferConfig
from kvtransfer.notification import request_key
from kvtransfer.transport import Write
from protocol import cluster_pb2
from protocol.errors import ServalError
from protocol.ids import Incarnation, LeaseId, RequestId


@dataclass(frozen=True)
class SendResult:
    """How a transfer ended. No write under its lease can happen after it."""

    error: ServalError | None
    """None: every block was written."""
    quiesced: bool
    """Every write is known to have ended. False: one may still land, so the receiver must set the slot apart."""
    bytes: int
    seconds: float
    """First post to last completion."""
    exposed_s: float
    """End of compute to last completion: the part that the overlap did not hide."""
    writes: int
    descriptors: int


class Region(NamedTuple):
    """Blocks [first_block, first_block + blocks) of layers [first_layer, first_layer + layers) of a transfer."""

    first_layer: int
    layers: int
    first_block: int
    blocks: int


@dataclass
class PostedWrite:
    write: Write
    posted_s: float


@dataclass
class Statistics:
    """Counted by the sender thread while a transfer runs."""

    bytes: int = 0
    writes: int = 0
    """Begun."""
    writes_done: int = 0
    descriptors: int = 0
    first_post_s: float = 0.0
    last_done_s: float = 0.0


@dataclass(eq=False)
class Transfer:
    """Made by `Sender.open`. `done` always resolves to a SendResult, also after a failure; a waiter cannot cancel it.

    The pool blocks must stay as they are until `done`.
    """

    request_id: RequestId
    attempt: int
    peer: Incarnation
    lease_id: LeaseId
    landing_address: int
    """Of the zone that landing blocks are counted in."""
    first_landing_block: int
    blocks: BlockList
    layers: int
    block_bytes: int
    deadline_s: float
    """time.monotonic() after which nothing is posted."""
    config: TransferConfig
    on_progress: Callable[[], None]
    """Wakes the sender thread."""
    records_events: bool
    """On CUDA the engine is ahead of the device: an event tells when a layer is really there."""
    done: "Future[SendResult]" = field(default_factory=Future)
    statistics: Statistics = field(default_factory=Statistics)
    in_flight: list[PostedWrite] = field(default_factory=list)
    quiesce_waiters: "list[Future[bool]]" = field(default_factory=list)
    compute_done_s: float | None = None

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()
        self.request_key = request_key(self.request_id)
        self._ready = [0] * self.layers
        self._posted = [0] * self.layers
        self._events: list[torch.cuda.Event | None] = [None] * self.layers
        self._layers_allowed = self.layers

    # ---- the engine thread

    def layer_ready(self, layer: int, upto_block: int) -> None:
        """Blocks [0, upto_block) of this transfer's list are computed in `layer` and final. Call on the engine's stream.

        Never waits. Calls for one layer must not go back; a block that the next chunk still writes to is not ready.
        """
        assert self._ready[layer] <= upto_block <= len(self.blocks), (self._ready[layer], upto_block, len(self.blocks))
        if self.records_events:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._events[layer] = event
        self._ready[layer] = upto_block
        if self.config.mode == "layerwise":
            self.on_progress()

    def compute_done(self) -> None:
        """Every layer was reported up to the last block. Raises AssertionError otherwise."""
        assert all(ready == len(self.blocks) for ready in self._ready), self._ready
        self.compute_done_s = time.monotonic()
        self.on_progress()

    def is_ready(self, layer: int) -> bool:
        """All of its blocks were reported."""
        return self._ready[layer] == len(self.blocks)

    # ---- test faults

    def limit(self, layers: int) -> None:
        """Only so many layers may be posted, until `lift_limit`. Call before the first is ready; from any thread."""
        self._layers_allowed = layers

    def lift_limit(self) -> None:
        self._layers_allowed = self.layers
        self.on_progress()

    @property
    def layers_sent(self) -> int:
        """Layers that are wholly at the receiver; those of writes under way count for none."""
        return 0 if self.in_flight else sum(posted == len(self.blocks) for posted in self._posted)

    # ---- the sender thread

    def next_region(self) -> Region | None:
        """What to write next, None when nothing is worth a write yet. Decides only; `mark_posted` records.

        Adjacent layers with the same waiting blocks go together, up to max_write_bytes. Below min_write_bytes they wait for
        more layers or chunks, except after the end of compute.
        """
        computed = self.compute_done_s is not None
        if self.config.mode == "whole_prompt" and not computed:
            return None
        layer = 0
        while layer < self._layers_allowed:
            region = self._widest_region(layer)
            if region.blocks:
                is_large = region.layers * region.blocks * self.block_bytes >= self.config.min_write_bytes
                if is_large or computed:
                    return region
            layer += region.layers
        return None

    def mark_posted(self, region: Region) -> None:
        for layer in range(region.first_layer, region.first_layer + region.layers):
            self._posted[layer] = region.first_block + region.blocks

    def events_of(self, region: Region) -> list[torch.cuda.Event]:
        """What the device must have passed before the region may be read."""
        events = self._events[region.first_layer : region.first_layer + region.layers]
        return [event for event in events if event is not None]

    @property
    def is_all_posted(self) -> bool:
        return self.compute_done_s is not None and self._posted == self._ready

    def landing_block(self, layer: int, block: int) -> int:
        """Where block `block` of `layer` goes: the layout of protocol/cluster.proto's WriteLease."""
        return self.first_landing_block + layer * len(self.blocks) + block

    def result(self, error: ServalError | None, quiesced: bool) -> SendResult:
        counted = self.statistics
        ended_s = counted.last_done_s or counted.first_post_s
        exposed_s = max(0.0, ended_s - self.compute_done_s) if self.compute_done_s is not None else 0.0
        seconds = ended_s - counted.first_post_s
        return SendResult(error, quiesced, counted.bytes, seconds, exposed_s, counted.writes, counted.descriptors)

    def _widest_region(self, first: int) -> Region:
        """From layer `first` on, the layers whose waiting blocks are the same. Layers with none are passed over together."""
        begin, end = self._posted[first], self._ready[first]
        layers = 1
        layer_bytes = (end - begin) * self.block_bytes
        while first + layers < self._layers_allowed and (self._posted[first + layers], self._ready[first + layers]) == (
            begin,
            end,
        ):
            if layer_bytes and (layers + 1) * layer_bytes > self.config.max_write_bytes:
                break
            layers += 1
        return Region(first, layers, begin, end - begin)

    def __repr__(self) -> str:
        return f"Transfer({self.request_id}#{self.attempt} lease {self.lease_id} posted {self._posted} of {self._ready})"


def lease_end(lease: cluster_pb2.WriteLease, margin_s: float) -> float:
    """time.monotonic() at which the sender stops posting, if the lease was received now."""
    return time.monotonic() + max(0.0, lease.duration_s - margin_s)
