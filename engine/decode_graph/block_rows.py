"""Sequences' block tables on the host, kept from step to step: a step adds the blocks that are new."""

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from engine.sequence import Sequence


class BlockRows:
    """One row per place in the batch. Whoever stays in its place costs nothing but what it took since."""

    def __init__(self, sequences: int, width: int) -> None:
        """`width`: blocks of the longest sequence that there may be."""
        self._rows = np.zeros((sequences, width), dtype=np.int32)
        self._held: list[list[int]] = [[] for _ in range(sequences)]
        """Each row's sequence's own list: put back, a sequence begins another one."""
        self._counts = [0] * sequences

    def table(self, sequences: SequenceOf[Sequence], rows: int, used: int, *, pinned: bool) -> torch.Tensor:
        """int32 [rows, used], a copy: of `sequences`, then the last one's again. `used`: blocks of the longest of them, at least
        one."""
        for row, sequence in enumerate(sequences):
            blocks = sequence.blocks
            known = self._counts[row] if self._held[row] is blocks else 0
            count = min(len(blocks), used)
            if count > known:
                self._rows[row, known:count] = blocks[known:count]
                self._held[row], self._counts[row] = blocks, count
            elif self._held[row] is not blocks:
                self._held[row], self._counts[row] = blocks, 0
        table = torch.empty(rows, used, dtype=torch.int32, pin_memory=pinned)
        target = table.numpy()
        target[: len(sequences)] = self._rows[: len(sequences), :used]
        target[len(sequences) :] = self._rows[len(sequences) - 1, :used]
        return table
