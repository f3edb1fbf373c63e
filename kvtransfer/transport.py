"""NIXL, behind one small interface: the only file that imports it. Its exceptions leave as protocol.errors.

One `Transport` per process, used by one thread after construction. NIXL runs without its progress thread (that burns a core)
and in STRICT thread mode (others crash without the progress thread): nothing moves unless `poll` or `notifications` is called.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvtransfer.config import TransferConfig
from protocol.errors import PeerGone, TransferFailed
from protocol.ids import Incarnation

Descriptors = npt.NDArray[np.uint64]
"""`[n, 2]`: address and length in bytes of n contiguous runs."""


METADATA_DIGEST_BYTES = 8


def agent_name(incarnation: Incarnation) -> str:
    """A restarted process is another agent, so nothing can be sent to it by an old handle."""
    return f"serval-{incarnation:016x}"


class Write:
    """One posted write. `release` must be called exactly once, also after an error."""

    def __init__(self, transport: "Transport", handle: Any, done: bool) -> None:
        self._transport = transport
        self._handle = handle
        self._done = done

    def poll(self) -> bool:
        """True when every byte is in the peer's memory and its notification sent. Raises PeerGone or TransferFailed."""
        if not self._done:
            self._done = self._transport.is_done(self._handle)
        return self._done

    def release(self) -> None:
        """Gives the handle back. Does NOT stop bytes that are under way: see Sender for the barrier that proves them landed."""
        self._transport.release(self._handle)


class Transport:
    """The NIXL agent of this process. Constructing it opens a listener on the configured device only."""

    def __init__(self, incarnation: Incarnation, config: TransferConfig) -> None:
        self.own_incarnation = incarnation
        self._api, self._errors = _load_nixl(config)
        self._close_pump_s = config.close_pump_s
        self._memory_kind = "DRAM"
        self._device_index = 0
        self._unreleased: list[Any] = []
        settings = self._api.nixl_agent_config(
            enable_prog_thread=False, backends=["UCX"], sync_mode=self._api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        )
        with self._mapped_errors("start the transport"):
            self._agent: Any = self._api.nixl_agent(agent_name(incarnation), settings)

    def register(self, memory: torch.Tensor) -> None:
        """Opens `memory` to reads and writes; once per memory. It must stay mapped for as long as any peer may write to it."""
        if memory.is_cuda:
            self._memory_kind, self._device_index = "VRAM", memory.get_device()
        region = (memory.data_ptr(), memory.numel() * memory.element_size(), self._device_index, "")
        with self._mapped_errors("register memory"):
            self._agent.register_memory([region], self._memory_kind)

    def unregister(self, memory: torch.Tensor) -> None:
        """Forgets memory, which must stay mapped: a peer that knows of it may still be able to write there."""
        region = (memory.data_ptr(), memory.numel() * memory.element_size(), self._device_index, "")
        with self._mapped_errors("unregister memory"):
            self._agent.deregister_memory(self._agent.get_reg_descs([region], self._memory_kind))

    def metadata(self) -> bytes:
        """What a peer needs to write here. It carries keys: hand it out on a trusted channel only.

        The library's own bytes behind a digest of them: it does not survive every change of one (see `add_peer`).
        """
        with self._mapped_errors("read metadata"):
            content = bytes(self._agent.get_agent_metadata())
        return _metadata_digest(content) + content

    def add_peer(self, metadata: bytes, incarnation: Incarnation) -> None:
        """Raises TransferFailed when the metadata is not that of `incarnation`, or not as its agent gave it out."""
        digest, content = metadata[:METADATA_DIGEST_BYTES], metadata[METADATA_DIGEST_BYTES:]
        if digest != _metadata_digest(content):
            raise TransferFailed(f"{len(metadata)} bytes of transport metadata are not as they were sent: their digest differs")
        with self._mapped_errors("add a peer"):
            added = self._agent.add_remote_agent(content)
        name = added.decode(errors="replace") if isinstance(added, bytes) else added
        if name != agent_name(incarnation):
            with contextlib.suppress(TransferFailed), self._mapped_errors("remove a peer"):
                self._agent.remove_remote_agent(name)
            raise TransferFailed(f"transport metadata is of {name}, not of {agent_name(incarnation)}")

    def check_range(self, incarnation: Incarnation, address: int, size_bytes: int) -> None:
        """Raises TransferFailed unless the peer has registered [address, address + size_bytes)."""
        rows = np.array([[address, size_bytes, 0]], dtype=np.uint64)
        with self._mapped_errors("reach the peer's landing zone"):
            handle = self._agent.prep_xfer_dlist(agent_name(incarnation), rows, self._memory_kind)
            handle.release()

    def remove_peer(self, incarnation: Incarnation) -> None:
        """Forgets a peer; its handles fail from now on. Does not stop bytes under way."""
        with self._mapped_errors("remove a peer"):
            self._agent.remove_remote_agent(agent_name(incarnation))

    def write(self, peer: Incarnation, local: Descriptors, remote: Descriptors, notification: bytes) -> Write:
        """Posts one write of n runs, local[i] to remote[i]. `local` is read until the write is done: keep it unchanged."""
        with self._mapped_errors("post a write"):
            handle = self._agent.initialize_xfer("WRITE", self._runs(local), self._runs(remote), agent_name(peer), notification)
        try:
            with self._mapped_errors("post a write"):
                state = self._agent.transfer(handle)
        except TransferFailed:
            self.release(handle)
            raise
        return Write(self, handle, state == "DONE")

    def is_done(self, handle: Any) -> bool:
        with self._mapped_errors("complete a write"):
            return bool(self._agent.check_xfer_state(handle) == "DONE")

    def release(self, handle: Any) -> None:
        """A handle that the library cannot give back yet is tried again by `notifications` and `close`."""
        try:
            handle.release()
        except self._errors.all:
            self._unreleased.append(handle)

    def notifications(self) -> list[tuple[str, bytes]]:
        """New notifications with the (self-declared) agent name of their sender. Also lets the transport progress."""
        if self._unreleased:
            waiting, self._unreleased = self._unreleased, []
            for handle in waiting:
                self.release(handle)
        with self._mapped_errors("read notifications"):
            received = self._agent.get_new_notifs()
        return [(name, message) for name, messages in received.items() for message in messages] if received else []

    def close(self) -> None:
        """Pumps, then destroys the agent: destroyed at once after a peer's death it would abort the process."""
        deadline_s = time.monotonic() + self._close_pump_s
        while time.monotonic() < deadline_s:
            with contextlib.suppress(TransferFailed):
                self.notifications()
            time.sleep(1e-3)
        self._unreleased.clear()
        self._agent = None

    def _runs(self, runs: Descriptors) -> Any:
        rows = np.empty((runs.shape[0], 3), dtype=np.uint64)
        rows[:, :2] = runs
        rows[:, 2] = self._device_index
        return self._agent.get_xfer_descs(rows, self._memory_kind)

    @contextlib.contextmanager
    def _mapped_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._errors.disconnected as error:
            raise PeerGone(f"could not {what}: the peer is gone") from error
        except self._errors.all as error:
            raise TransferFailed(f"could not {what}: {type(error).__name__} {error}".rstrip()) from error


class _NixlErrors:
    """NIXL's exception types: each derives straight from Exception."""

    def __init__(self, bindings: ModuleType) -> None:
        found = [value for name, value in vars(bindings).items() if name.startswith("nixl") and name.endswith("Error")]
        self.all: tuple[type[Exception], ...] = (*found, RuntimeError, ValueError)
        self.disconnected: type[Exception] = bindings.nixlRemoteDisconnectError


def _metadata_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=METADATA_DIGEST_BYTES).digest()


def _load_nixl(config: TransferConfig) -> tuple[Any, _NixlErrors]:
    """The NIXL build that fits torch's CUDA. NIXL and UCX read their settings from the environment when they start."""
    os.environ["NIXL_LOG_LEVEL"] = "ERROR"
    os.environ["UCX_NET_DEVICES"] = config.net_device
    if config.transports is not None:
        os.environ["UCX_TLS"] = config.transports
    cuda = torch.version.cuda
    package = "nixl_cu13" if cuda is not None and cuda.split(".")[0] == "13" else "nixl_cu12"
    api = importlib.import_module(f"{package}._api")
    # Its logger prints to stdout, where a command's output belongs.
    logging.getLogger("nixl").handlers.clear()
    return api, _NixlErrors(importlib.import_module(f"{package}._bindings"))
