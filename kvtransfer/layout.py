"""The shape of KV memory, and the fingerprint by which two workers know that theirs is the same."""

import hashlib
import json
from dataclasses import asdict, dataclass

import torch

from protocol.errors import ConfigError

WORD_BYTES = 8
"""Digests work on 64-bit words, so a block is a whole number of them."""

FORMAT = 1
"""Raised whenever the landing layout, the notification or the digest changes: workers of different formats then refuse."""


@dataclass(frozen=True)
class KVLayout:
    """A pool `data[layers, num_blocks, block_size, entry_width]`: one block of one layer is contiguous (`block_bytes`).

    num_blocks is not part of it: pools of different sizes can exchange blocks.
    """

    model: str
    revision: str
    dtype: str
    """A torch dtype's name, e.g. "bfloat16"."""
    layers: int
    """KV layers; a model with two attentions per layer has two of them."""
    block_size: int
    """Tokens."""
    entry_width: int
    """Elements of one token's entry in one layer: latent width, or 2 x KV heads x head size."""
    parallel_split: str = "1"
    """How the entry is divided over ranks; "1": not at all."""
    draft_layers: int = 0
    """Of `layers`, the last ones: those of a head that drafts tokens. Both sides draft with it, or neither does."""

    def __post_init__(self) -> None:
        if min(self.layers, self.block_size, self.entry_width) < 1:
            raise ConfigError(f"layers, block_size and entry_width must be positive: {self}")
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ConfigError(f"dtype {self.dtype!r} is not a torch dtype")
        if self.block_bytes % WORD_BYTES:
            raise ConfigError(f"block_size: a KV block of {self.block_bytes} bytes is not a multiple of {WORD_BYTES}")

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def block_bytes(self) -> int:
        """Of one block of one layer."""
        return self.block_size * self.entry_width * self.torch_dtype.itemsize

    @property
    def block_words(self) -> int:
        return self.block_bytes // WORD_BYTES

    @property
    def fingerprint(self) -> str:
        """Equal exactly when KV bytes mean the same on both sides; compared before the first byte is sent.

        It begins with what people can change by a setting, so that two that differ tell why.
        """
        fields = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        drafting = "-mtp" if self.draft_layers else ""
        shown = f"{self.dtype}-{self.layers}x{self.block_size}x{self.entry_width}{drafting}"
        return f"kv{FORMAT}-{shown}-{hashlib.sha256(fields.encode()).hexdigest()[:32]}"

    def words_of(self, pool: torch.Tensor) -> torch.Tensor:
        """The pool as int64 `[layers * num_blocks, block_words]`, sharing its memory. Raises ConfigError for another shape."""
        expected = (self.layers, self.block_size, self.entry_width)
        if pool.dim() != 4 or (pool.shape[0], pool.shape[2], pool.shape[3]) != expected or pool.dtype != self.torch_dtype:
            raise ConfigError(f"KV pool {tuple(pool.shape)} {pool.dtype} does not fit {self}")
        if not pool.is_contiguous():
            raise ConfigError("KV pool must be contiguous")
        return pool.view(self.layers * pool.shape[1], -1).view(torch.int64)
