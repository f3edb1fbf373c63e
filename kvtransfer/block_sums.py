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


Which = slice | torch.Tensor
"""Rows of a contiguous int64 tensor `[any, block_words]`, which must have them: a slice, or int64 numbers on its device."""


class BlockSums(Protocol):
    def sum(self, words: torch.Tensor, rows: Which, out: torch.Tensor) -> None:
        """`out[i]` becomes the sum of row `rows[i]`."""

    def copy(
        self, source: torch.Tensor, source_rows: Which, words: torch.Tensor, rows: Which, out: torch.Tensor | None
    ) -> None:
        """Row `rows[i]` of `words` becomes what row `source_rows[i]` of `source` is, `out[i]` the sum of **the copy**, whatever
        happens to the source meanwhile."""


class TorchSums:
    """At most `most_blocks` at once. Not thread-safe: it owns scratch memory."""

    def __init__(self, keys: torch.Tensor, most_blocks: int) -> None:
        self._keys = keys
        self._mixed = torch.empty(most_blocks, keys.shape[0], dtype=torch.int64, device=keys.device)
        self._gathered = torch.empty_like(self._mixed)

    def sum(self, words: torch.Tensor, rows: Which, out: torch.Tensor) -> None:
        values = self._gather(words, rows)
        mixed = self._mixed[: values.shape[0]]
        torch.bitwise_right_shift(values, 32, out=mixed)
        mixed.bitwise_and_(LOW_HALF).bitwise_xor_(values).mul_(self._keys)
        torch.sum(mixed, 1, out=out)

    def copy(
        self, source: torch.Tensor, source_rows: Which, words: torch.Tensor, rows: Which, out: torch.Tensor | None
    ) -> None:
        if isinstance(rows, slice):
            words[rows].copy_(source[source_rows])
        else:
            words.index_copy_(0, rows, source[source_rows])
        if out is not None:
            self.sum(words, rows, out)

    def _gather(self, words: torch.Tensor, rows: Which) -> torch.Tensor:
        if isinstance(rows, slice):
            return words[rows]
        return torch.index_select(words, 0, rows, out=self._gathered[: rows.shape[0]])


class NativeSums:
    """In main memory. Other threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL, keys: torch.Tensor) -> None:
        self._library = library
        self._keys = keys
        self._block_words = keys.shape[0]
        self._keys_address = keys.data_ptr()

    def sum(self, words: torch.Tensor, rows: Which, out: torch.Tensor) -> None:
        self._library.serval_sum_blocks(
            words.data_ptr(), *_named(rows), _count(rows), self._block_words, self._keys_address, out.data_ptr()
        )

    def copy(
        self, source: torch.Tensor, source_rows: Which, words: torch.Tensor, rows: Which, out: torch.Tensor | None
    ) -> None:
        sums = None if out is None else out.data_ptr()
        where = (source.data_ptr(), *_named(source_rows), words.data_ptr(), *_named(rows), _count(rows))
        self._library.serval_copy_blocks(*where, self._block_words, self._keys_address, sums)


def block_sums(keys: torch.Tensor, most_blocks: int) -> BlockSums:
    """The fastest way on the device of `keys [block_words]`."""
    library = load_library() if keys.device.type == "cpu" else None
    return NativeSums(library, keys) if library is not None else TorchSums(keys, most_blocks)


def _named(rows: Which) -> tuple[int | None, int]:
    """As block_sums.c takes them: an address of numbers, or the first row."""
    return (None, rows.start) if isinstance(rows, slice) else (rows.data_ptr(), 0)


def _count(rows: Which) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else rows.shape[0]


@cache
def load_library() -> ctypes.CDLL | None:
    """block_sums.c, compiled for this machine; None, with a log line that says why, where it cannot have it."""
    try:
        library = c_library.load(SOURCE, ())
    except c_library.Unavailable as reason:
        log.info("torch computes the digests of KV: %s", reason)
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    rows, keys_and_sums = (pointer, pointer, integer), (integer, pointer, pointer)
    library.serval_sum_blocks.argtypes = (*rows, integer, *keys_and_sums)
    library.serval_copy_blocks.argtypes = (*rows, *rows, integer, *keys_and_sums)
    for function in (library.serval_sum_blocks, library.serval_copy_blocks):
        function.restype = None
    return library
