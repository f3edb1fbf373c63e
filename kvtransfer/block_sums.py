"""The sum of each block's mixed words (the first line of kvtransfer/digest.py), in two ways that give the same.

Torch takes five passes over a block, on any device. In main memory one pass in C does, at memory speed, where there is a compiler.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from machine import c_library

SOURCE = Path(__file__).with_name("block_sums.c")
LOW_HALF = 0xFFFFFFFF

log = logging.getLogger(__name__)


class BlockSums(Protocol):
    def __call__(self, words: torch.Tensor, rows: slice | torch.Tensor, out: torch.Tensor) -> None:
        """`out[i]` becomes the sum of row `rows[i]` of `words [any, block_words]`, which must have it. All are int64 and
        contiguous."""


class TorchSums:
    """At most `most_blocks` at once. Not thread-safe: it owns scratch memory."""

    def __init__(self, keys: torch.Tensor, most_blocks: int) -> None:
        self._keys = keys
        self._mixed = torch.empty(most_blocks, keys.shape[0], dtype=torch.int64, device=keys.device)
        self._gathered = torch.empty_like(self._mixed)

    def __call__(self, words: torch.Tensor, rows: slice | torch.Tensor, out: torch.Tensor) -> None:
        values = self._gather(words, rows)
        mixed = self._mixed[: values.shape[0]]
        torch.bitwise_right_shift(values, 32, out=mixed)
        mixed.bitwise_and_(LOW_HALF).bitwise_xor_(values).mul_(self._keys)
        torch.sum(mixed, 1, out=out)

    def _gather(self, words: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        if isinstance(rows, slice):
            return words[rows]
        return torch.index_select(words, 0, rows, out=self._gathered[: rows.shape[0]])


class NativeSums:
    """In main memory. Other threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL, keys: torch.Tensor) -> None:
        self._sum = library.serval_block_sums
        self._keys = keys

    def __call__(self, words: torch.Tensor, rows: slice | torch.Tensor, out: torch.Tensor) -> None:
        index, first = (None, rows.start) if isinstance(rows, slice) else (rows.data_ptr(), 0)
        keys = self._keys
        self._sum(words.data_ptr(), keys.shape[0], index, first, out.shape[0], keys.data_ptr(), out.data_ptr())


def block_sums(keys: torch.Tensor, most_blocks: int) -> BlockSums:
    """The fastest way on the device of `keys [block_words]`."""
    library = load_library() if keys.device.type == "cpu" else None
    return NativeSums(library, keys) if library is not None else TorchSums(keys, most_blocks)


@cache
def load_library() -> ctypes.CDLL | None:
    """block_sums.c, compiled for this machine; None, with a log line that says why, where it cannot have it."""
    try:
        library = c_library.load(SOURCE, ())
    except c_library.Unavailable as reason:
        log.info("torch computes the digests of KV: %s", reason)
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.serval_block_sums.argtypes = (pointer, integer, pointer, integer, integer, pointer, pointer)
    library.serval_block_sums.restype = None
    return library
