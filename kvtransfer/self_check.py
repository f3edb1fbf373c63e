"""A real write of this process to itself, now and then: proof that its transport thread, its agent and the library make progress.

To itself, because a write to a peer would also fail for the peer's sake.
"""

import logging
import time

import numpy as np
import torch

from kvtransfer.config import TransferConfig
from kvtransfer.layout import WORD_BYTES
from kvtransfer.transport import Transport, Write
from protocol.errors import TransferFailed

log = logging.getLogger(__name__)


class SelfCheck:
    """Used by the transport thread; `proofs` may be read by any. Its two words are its own, whatever a
    peer writes there."""

    def __init__(self, transport: Transport, config: TransferConfig, device: torch.device) -> None:
        self._transport = transport
        self._period_s = config.self_check_s
        self._words = torch.zeros(2, dtype=torch.int64, device=device)
        transport.register(self._words)
        self._write: Write | None = None
        self._next_s = time.monotonic()
        self.proofs = 0
        """Writes that are known to have arrived, to whomever. It stands still only when the transport does."""

    def note_work(self) -> None:
        """A write of a prompt has arrived, which is as good."""
        self.proofs += 1
        self._next_s = time.monotonic() + self._period_s

    def step(self) -> None:
        """Posts or polls. Never waits; a failure is no proof and is tried again."""
        now_s = time.monotonic()
        if self._write is None and now_s < self._next_s:
            return
        self._next_s = now_s + self._period_s
        try:
            if self._write is None:
                self._post()
            if self._write is not None and self._write.poll():
                self._take()
        except TransferFailed as error:
            log.warning("the transport failed to write to itself: %s", error)
            self._drop()

    def _post(self) -> None:
        self._words[0] = self.proofs + 1
        address = self._words.data_ptr()
        source = np.array([[address, WORD_BYTES]], dtype=np.uint64)
        target = np.array([[address + WORD_BYTES, WORD_BYTES]], dtype=np.uint64)
        self._write = self._transport.write(self._transport.own_incarnation, source, target, b"")

    def _take(self) -> None:
        arrived, sent = int(self._words[1]), int(self._words[0])
        self._drop()
        if arrived == sent:
            self.note_work()
        else:
            log.warning("the transport says that a write to itself is done, and it is not there")

    def _drop(self) -> None:
        if self._write is not None:
            self._write.release()
            self._write = None
