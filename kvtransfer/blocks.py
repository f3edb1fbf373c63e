"""A request's pool blocks, in the request's order: as contiguous runs for descriptors, as rows for tensor operations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from protocol.errors import InvalidRequest
from protocol.ids import BlockId


class Run(NamedTuple):
    """Pool blocks first, first + 1, ... (`blocks` of them) at positions position, position + 1, ... of the list."""

    first: int
    position: int
    blocks: int


class Rows:
    """Rows of a `[rows, block_words]` view, taken piece by piece."""

    def __init__(self, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        self._rows = rows
        self._breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        self._index = torch.from_numpy(rows).to(device) if self._breaks.size else None

    def __len__(self) -> int:
        return int(self._rows.size)

    def piece(self, begin: int, end: int) -> slice | torch.Tensor:
        """An index for rows [begin, end): a slice (a view, no copy) where they are contiguous."""
        next_break = int(np.searchsorted(self._breaks, begin, side="right"))
        if self._index is None or next_break == self._breaks.size or self._breaks[next_break] >= end:
            first = int(self._rows[begin])
            return slice(first, first + end - begin)
        return self._index[begin:end]


class BlockList:
    """Raises InvalidRequest for blocks outside the pool or named twice: the transport accepts both silently."""

    def __init__(self, block_ids: Sequence[BlockId], pool_blocks: int) -> None:
        self._ids = np.asarray(block_ids, dtype=np.int64)
        if self._ids.size == 0 or self._ids.min() < 0 or self._ids.max() >= pool_blocks:
            raise InvalidRequest(f"KV blocks must be within a pool of {pool_blocks}: {list(block_ids)[:8]}")
        if np.unique(self._ids).size != self._ids.size:
            raise InvalidRequest("a KV block is named twice")
        self._pool_blocks = pool_blocks
        self._breaks = np.flatnonzero(np.diff(self._ids) != 1) + 1

    def __len__(self) -> int:
        return int(self._ids.size)

    def runs(self, begin: int, end: int) -> list[Run]:
        """Positions [begin, end) as runs that are as long as they can be: each is one descriptor."""
        inner = [int(b) for b in self._breaks if begin < b < end]
        return [Run(int(self._ids[a]), a, b - a) for a, b in zip([begin, *inner], [*inner, end], strict=True)]

    def rows(self, first_layer: int, layers: int, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Rows of a `[layers * pool_blocks, block_words]` view of the pool: layer by layer, positions [begin, end) of each."""
        layer = np.arange(first_layer, first_layer + layers, dtype=np.int64)[:, None]
        return (layer * self._pool_blocks + self._ids[begin:end]).ravel()
