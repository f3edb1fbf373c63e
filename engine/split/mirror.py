"""Which blocks of the leader's KV pool its followers' pools hold too.

What a forward pass computes they compute as well. What another worker wrote into the leader's pool they lack until it is sent.
"""

from weakref import WeakKeyDictionary

import numpy as np

from engine.batch import Span
from engine.sequence import Sequence


class Mirror:
    """`forget` is called by whoever takes blocks, `missing` by whoever computes; a block is taken before it is computed with."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._held = np.zeros(num_blocks, dtype=np.bool_)
        self._looked_at: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()
        """Sequences whose context was found complete, and how often they had been preempted then: what they hold stays."""

    def forget(self, blocks: list[int]) -> None:
        """They were taken to be written to."""
        self._held[blocks] = False

    def missing(self, spans: list[Span]) -> list[int]:
        """Blocks that the followers lack of what `spans` attend to, before they are computed; from now on they count as held, and
        so do those that are computed."""
        missing: list[int] = []
        for span in spans:
            sequence = span.sequence
            if self._looked_at.get(sequence) != sequence.num_preemptions:
                context = np.asarray(sequence.blocks[: -(-span.start // self._block_size)], dtype=np.int64)
                missing += context[~self._held[context]].tolist()
                self._held[context] = True
                self._looked_at[sequence] = sequence.num_preemptions
            self._held[sequence.blocks[span.start // self._block_size : -(-span.end // self._block_size)]] = True
        return missing
