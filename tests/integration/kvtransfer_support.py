"""A prefill and a decode process that move KV, and a way to call into them from a test.

Each `Remote` is a process that makes one host object and answers calls over a pipe. Every call has a deadline.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from kvtransfer.config import TransferConfig
from kvtransfer.layout import KVLayout
from protocol import cluster_pb2
from protocol.errors import TransferFailed
from protocol.ids import draw_incarnation
from telemetry.metrics import Metrics

CALL_TIMEOUT_S = 30.0

SMALL = KVLayout("tiny", "r1", "float32", layers=4, block_size=16, entry_width=64)
"""4 KiB blocks."""

LARGE = KVLayout("large", "r1", "float32", layers=4, block_size=16, entry_width=4096)
"""256 KiB blocks: 64 of them in 4 layers are 64 MiB."""

POOL_BLOCKS = 128

ALL_LARGE = list(range(64))
"""64 MiB in four layers."""


def source_pool(layout: KVLayout, seed: int) -> torch.Tensor:
    """What a prefill process has in its pool; both sides can compute it."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.layers, POOL_BLOCKS, layout.block_size, layout.entry_width)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(layout.torch_dtype)


class DecodeHost:
    def __init__(self, layout: KVLayout = SMALL, **settings: Any) -> None:
        from kvtransfer.receiver import Receiver

        self.layout = layout
        self.pool = torch.zeros(layout.layers, POOL_BLOCKS, layout.block_size, layout.entry_width, dtype=layout.torch_dtype)
        self.metrics = Metrics("decode", "decode-0")
        self.incarnation = draw_incarnation()
        config = TransferConfig(**{"landing_bytes": 257 * layout.block_bytes, **settings})
        self.receiver = Receiver(config, layout, self.pool, self.incarnation, self.metrics)
        self.leases: dict[int, Any] = {}

    def introduction(self) -> tuple[Any, ...]:
        """Arguments of Sender.introduce."""
        r = self.receiver
        return ("decode-0", self.incarnation, r.metadata, r.landing_address, r.landing_blocks, r.fingerprint)

    def reserve(self, request_id: str, peer: int, blocks: list[int], attempt: int = 0) -> bytes:
        lease = self.receiver.reserve(request_id, attempt, peer, blocks)
        self.leases[lease.lease_id] = lease
        return lease.to_proto().SerializeToString()

    def wait(self, lease_id: int, timeout_s: float = 10.0) -> Any:
        return self.leases[lease_id].done.result(timeout_s)

    def is_done(self, lease_id: int) -> bool:
        return self.leases[lease_id].done.done()

    def cancel(self, lease_id: int) -> None:
        self.receiver.cancel(self.leases[lease_id])

    def release(self, lease_id: int, quiesced: bool) -> str:
        self.receiver.release(self.leases[lease_id], quiesced)
        self.receiver.check_integrity()
        return str(self.leases[lease_id].slot.state)

    def state(self, lease_id: int) -> str:
        return str(self.leases[lease_id].slot.state)

    def peer_gone(self, peer: int) -> None:
        self.receiver.peer_gone(peer)

    def wait_for_state(self, lease_id: int, state: str, timeout_s: float = 10.0) -> float:
        """Seconds until the slot was in that state."""
        started_s = time.monotonic()
        while self.state(lease_id) != state:
            if time.monotonic() > started_s + timeout_s:
                raise TimeoutError(f"{self.leases[lease_id]} is not {state}")
            time.sleep(1e-3)
        return time.monotonic() - started_s

    def wait_for_metric(self, name: str, timeout_s: float = 10.0, **labels: str) -> float:
        """The value of one that counts something, as soon as it has."""
        until_s = time.monotonic() + timeout_s
        while not (value := self.metric(name, **labels)):
            if time.monotonic() > until_s:
                raise TimeoutError(f"{name} {labels} is still 0")
            time.sleep(1e-3)
        return value

    def wait_for_free(self, blocks: int, timeout_s: float = 10.0) -> None:
        """Until so many landing blocks can be reserved."""
        until_s = time.monotonic() + timeout_s
        while self.free_blocks() < blocks:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{self.receiver}")
            time.sleep(1e-3)

    def pool_equals(self, blocks: list[int], source_blocks: list[int], seed: int) -> bool:
        return torch.equal(self.pool[:, blocks], source_pool(self.layout, seed)[:, source_blocks])

    def pool_is_zero(self) -> bool:
        return not self.pool.any()

    def fill_zone(self, first: int, blocks: int, value: int) -> None:
        """What a new owner of the landing blocks would do with them."""
        self.receiver._book.zone.words[first : first + blocks] = value

    def count_changed(self, first: int, blocks: int, value: int) -> int:
        """Words of the landing blocks that are not `value`."""
        return int((self.receiver._book.zone.words[first : first + blocks] != value).sum())

    def refuse_zones(self) -> None:
        """From now on there is no memory for another zone."""

        def make() -> Any:
            raise TransferFailed("there is no memory for another landing zone")

        self.receiver._book._zones.make = make  # type: ignore[method-assign]

    def busy(self, seconds: float) -> None:
        """Keeps the receiver thread from polling for so long."""
        self.receiver._transport.notifications = _slow_once(self.receiver._transport.notifications, seconds)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.value(name, **labels)

    def free_blocks(self) -> int:
        return self.receiver.blocks_by_state()["free"]

    def close(self) -> bool:
        return self.receiver.close()


class PrefillHost:
    def __init__(self, layout: KVLayout = SMALL, seed: int = 1, **settings: Any) -> None:
        from kvtransfer.sender import Sender

        self.layout = layout
        self.pool = source_pool(layout, seed)
        self.metrics = Metrics("prefill", "prefill-0")
        self.incarnation = draw_incarnation()
        self.sender = Sender(TransferConfig(**settings), layout, self.pool, self.incarnation, self.metrics)
        self.transfers: dict[str, Any] = {}

    def get_incarnation(self) -> int:
        return self.incarnation

    def introduce(self, *introduction: Any) -> None:
        self.sender.introduce(*introduction).result(10)

    def open(self, request_id: str, peer: int, lease: bytes, blocks: list[int], attempt: int = 0) -> None:
        parsed = cluster_pb2.WriteLease.FromString(lease)
        self.transfers[request_id] = self.sender.open(request_id, attempt, peer, parsed, blocks)

    def layers_ready(self, request_id: str, first: int, layers: int, upto: int) -> None:
        for layer in range(first, first + layers):
            self.transfers[request_id].layer_ready(layer, upto)

    def drip(self, request_id: str, upto: int, layer_s: float) -> None:
        """Layers as an engine would report them, `layer_s` apart."""
        for layer in range(self.layout.layers):
            time.sleep(layer_s)
            self.transfers[request_id].layer_ready(layer, upto)
        self.transfers[request_id].compute_done()

    def compute_done(self, request_id: str) -> None:
        self.transfers[request_id].compute_done()

    def wait(self, request_id: str, timeout_s: float = 10.0) -> Any:
        return self.transfers[request_id].done.result(timeout_s)

    def send(self, request_id: str, peer: int, lease: bytes, blocks: list[int], attempt: int = 0) -> Any:
        """A whole prompt at once."""
        self.start(request_id, peer, lease, blocks, attempt)
        return self.wait(request_id, 20.0)

    def start(self, request_id: str, peer: int, lease: bytes, blocks: list[int], attempt: int = 0) -> None:
        self.open(request_id, peer, lease, blocks, attempt)
        self.layers_ready(request_id, 0, self.layout.layers, len(blocks))
        self.compute_done(request_id)

    def start_and_abort(self, request_id: str, peer: int, lease: bytes, blocks: list[int], after_s: float) -> bool:
        """Aborts while the writes are under way."""
        self.start(request_id, peer, lease, blocks)
        time.sleep(after_s)
        return self.abort(peer, cluster_pb2.WriteLease.FromString(lease).lease_id)

    def abort(self, peer: int, lease_id: int) -> bool:
        return self.sender.abort(peer, lease_id).result(15)

    def start_and_break(self, request_id: str, peer: int, lease: bytes, blocks: list[int]) -> None:
        """What the sender does when a write says that the peer is gone, with the first of the prompt's writes in flight. On its
        thread, so that it cannot be done with them by then."""

        def act() -> None:
            self.start(request_id, peer, lease, blocks)
            self.sender._advance(self.transfers[request_id])
            self.sender._disconnect(peer, "test")

        self.sender._inbox.submit(act).result(5)

    def notify(self, peer: int, message: bytes) -> None:
        """A bare notification, as a stray or hostile process would send it."""
        from kvtransfer.transport import agent_name

        self.sender._inbox.submit(lambda: self.sender._transport._agent.send_notif(agent_name(peer), message)).result(5)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.value(name, **labels)

    def close(self) -> bool:
        return self.sender.close()


def _slow_once(call: Any, seconds: float) -> Any:
    state = {"slept": False}

    def slow() -> Any:
        if not state["slept"]:
            state["slept"] = True
            time.sleep(seconds)
        return call()

    return slow


class Remote:
    """A host in a process of its own: `remote.method(...)` calls it there and raises what it raises."""

    def __init__(self, host: type, *args: Any, environment: dict[str, str] | None = None, **settings: Any) -> None:
        # Forked from a fresh process that has imported torch (seconds) and nothing of NIXL.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "pydantic", "prometheus_client", "google.protobuf"])
        self._pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, host, args, settings, environment or {}), daemon=True)
        self.process.start()
        other.close()
        self._is_starting = True

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            self.begin(name, *args, **keywords)
            return self._answer()

        return call

    def begin(self, name: str, *args: Any, **keywords: Any) -> None:
        """Calls without waiting; `finish` takes the answer."""
        self.ready()
        self._pipe.send((name, args, keywords))

    def finish(self) -> Any:
        return self._answer()

    def ready(self) -> "Remote":
        """Waits until the host is made; any call does too, so that several can start at once."""
        if self._is_starting:
            self._is_starting = False
            self._answer()
        return self

    def _answer(self) -> Any:
        if not self._pipe.poll(CALL_TIMEOUT_S):
            raise TimeoutError("the process did not answer")
        value = self._pipe.recv()
        if isinstance(value, BaseException):
            raise value
        return value

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)

    def end(self) -> int | None:
        """Ends the process in order; its exit code (negative: the signal that ended it)."""
        if self.process.is_alive():
            self.ready()
            self._pipe.send(None)
            self.process.join(10)
            if self.process.is_alive():
                self.kill()
        return self.process.exitcode


@contextlib.contextmanager
def pair(decode: dict[str, Any] | None = None, prefill: dict[str, Any] | None = None) -> Iterator[tuple[Remote, Remote]]:
    """An introduced pair; at the end both must be able to end in order, whatever happened to the other."""
    d, p = Remote(DecodeHost, **(decode or {})), Remote(PrefillHost, **(prefill or {}))
    try:
        p.introduce(*d.introduction())
        yield d, p
        for remote in (p, d):
            if remote.process.is_alive():
                assert remote.end() == 0, "the process aborted while closing"
    finally:
        for remote in (p, d):
            remote.kill()


def lease_of(data: bytes) -> cluster_pb2.WriteLease:
    return cluster_pb2.WriteLease.FromString(data)


def _serve(pipe: Connection, host: type, args: tuple[Any, ...], settings: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    served = host(*args, **settings)
    pipe.send(None)
    while True:
        try:
            request = pipe.recv()
        except (EOFError, ConnectionResetError):
            break
        if request is None:
            break
        name, positional, keywords = request
        try:
            pipe.send(getattr(served, name)(*positional, **keywords))
        except Exception as error:
            pipe.send(error)
    served.close()
