"""Which blocks of the pool are free, handed out in as few contiguous runs as possible."""

import numpy as np
from numpy.typing import NDArray

from protocol.errors import Overloaded


class OutOfBlocks(Overloaded):
    """The pool has not enough free blocks now."""


class BlockAllocator:
    """Hands out block numbers, contiguous-first: a transfer of one run is one descriptor, attention over one run is a view.

    Not thread-safe; KVCache holds the lock.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = np.ones(num_blocks, dtype=np.bool_)
        self._num_free = num_blocks

    @property
    def num_free(self) -> int:
        return self._num_free

    def is_free(self, block: int) -> bool:
        return bool(self._free[block])

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Takes `count` blocks: those right after block `after` where free, else one run, else the fewest runs.

        Raises OutOfBlocks, and takes nothing, when fewer are free.
        """
        if count > self._num_free:
            raise OutOfBlocks(f"{count} KV blocks wanted, {self._num_free} free")
        if count == 0:
            return []
        taken = self._following(after, count) if after is not None else []
        if len(taken) < count:
            taken += self._fewest_runs(count - len(taken), excluding=taken)
        self._free[taken] = False
        self._num_free -= count
        return taken

    def free(self, blocks: list[int]) -> None:
        """Takes blocks back. A block that is free already is a bug of ours."""
        assert not self._free[blocks].any(), "block freed twice"
        self._free[blocks] = True
        self._num_free += len(blocks)

    def _following(self, after: int, count: int) -> list[int]:
        end = after + 1
        while end < self.num_blocks and end - after - 1 < count and self._free[end]:
            end += 1
        return list(range(after + 1, end))

    def _fewest_runs(self, count: int, excluding: list[int]) -> list[int]:
        self._free[excluding] = False
        starts, lengths = self._runs()
        self._free[excluding] = True
        order = np.argsort(-lengths, kind="stable")
        taken: list[int] = []
        for run in order:
            start, length = int(starts[run]), int(lengths[run])
            wanted = count - len(taken)
            if length >= wanted:
                # In the middle of the longest run: the sequences on both sides keep room to grow without a gap.
                first = start + (length - wanted) // 2 if not taken else start
                return [*taken, *range(first, first + wanted)]
            taken.extend(range(start, start + length))
        raise AssertionError("free blocks miscounted")

    def _runs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        edges = np.flatnonzero(np.diff(self._free, prepend=False, append=False))
        return edges[::2], edges[1::2] - edges[::2]
