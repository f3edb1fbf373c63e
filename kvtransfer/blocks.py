"""A request's pool blocks, in the request's order: as contiguous runs for descriptors, as an index for tensor operations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from protocol.errors import InvalidRequest
from protocol.ids import BlockId


class Run(NamedTuple):
    """Pool blocks first, first + 1, ... (`blocks` of them) at positions position, position + 1, ... of the list."""

    first: int
    position: int
    blocks: int


class BlockList:
    """Raises InvalidRequest for blocks outside the pool or named twice: the transport accepts both silently."""

    def __init__(self, block_ids: Sequence[BlockId], pool_blocks: int, device: torch.device) -> None:
        self._ids = np.asarray(block_ids, dtype=np.int64)
        if self._ids.size == 0 or self._ids.min() < 0 or self._ids.max() >= pool_blocks:
            raise InvalidRequest(f"KV blocks must be within a pool of {pool_blocks}: {list(block_ids)[:8]}")
        if np.unique(self._ids).size != self._ids.size:
            raise InvalidRequest("a KV block is named twice")
        self._index = torch.from_numpy(self._ids.copy()).to(device)
        self._breaks = np.flatnonzero(np.diff(self._ids) != 1) + 1

    def __len__(self) -> int:
        return int(self._ids.size)

    def runs(self, begin: int, end: int) -> list[Run]:
        """Positions [begin, end) as runs that are as long as they can be: each is one descriptor."""
        inner = [int(b) for b in self._breaks if begin < b < end]
        return [Run(int(self._ids[a]), a, b - a) for a, b in zip([begin, *inner], [*inner, end], strict=True)]

    def select(self, begin: int, end: int) -> slice | torch.Tensor:
        """An index into the pool for positions [begin, end): a slice (a view, no copy) where they are contiguous."""
        first = int(self._ids[begin])
        if int(self._ids[end - 1]) - first == end - 1 - begin and not ((self._breaks > begin) & (self._breaks < end)).any():
            return slice(first, first + end - begin)
        return self._index[begin:end]
