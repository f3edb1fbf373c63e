"""The digest of KV blocks: torch integer operations only, so the same code runs on CPU and CUDA.

Of a run of blocks at positions p, p+1, ... of a request, each of words w[0], w[1], ...:

    block  = sum over i of WORD_KEY[i] * mix(w[i])            mod 2^64
    digest = sum over p of POSITION_KEY[p] * mix(block[p])    mod 2^64        where mix(x) = x ^ (x >>> 32)

mix is a bijection and every key is odd, so a change of any one word is always found. The keys differ, so exchanged words and
exchanged blocks are found. Without mix a plain weighted sum would miss any two flips of a top bit: each adds 2^63 whatever its
key. Digests of adjacent runs of one layer add up to the digest of the whole. This finds accidents; it is not a signature.
"""

import numpy as np
import torch

CPU_CHUNK_WORDS = 32 * 1024
"""256 KiB: stays in the second-level cache, and is the size up to which torch does not start helper threads."""

CUDA_CHUNK_WORDS = 16 * 1024 * 1024

LOW_HALF = 0xFFFFFFFF
WORD_MODULUS = 1 << 64


class BlockDigest:
    """Digests runs of blocks on one device. Not thread-safe: it owns scratch memory, so each thread makes its own."""

    def __init__(self, block_words: int, device: torch.device) -> None:
        chunk_words = CPU_CHUNK_WORDS if device.type == "cpu" else CUDA_CHUNK_WORDS
        self.chunk_blocks = max(1, chunk_words // block_words)
        """The blocks that are worked on at once."""
        self._word_keys = _keys(block_words, seed=1).to(device)
        self._position_keys = _keys(1024, seed=2).to(device)
        self._mixed = torch.empty(self.chunk_blocks, block_words, dtype=torch.int64, device=device)
        self._gathered = torch.empty_like(self._mixed)

    def block_sums(self, words: torch.Tensor, rows: slice | torch.Tensor, out: torch.Tensor) -> None:
        """`out[i]` becomes the digest of the block in row `rows[i]` of `words [any, block_words]`; at most `chunk_blocks`."""
        values = self._gather(words, rows)
        mixed = self._mixed[: values.shape[0]]
        torch.bitwise_right_shift(values, 32, out=mixed)
        mixed.bitwise_and_(LOW_HALF).bitwise_xor_(values).mul_(self._word_keys)
        torch.sum(mixed, 1, out=out)

    def combine(self, sums: torch.Tensor, first_position: int) -> list[int]:
        """The digest of each layer, in [0, 2^64): `sums [layers, blocks]`, the first block at `first_position` of its request.

        Waits for the device. Digests of adjacent runs add up (mod 2^64) to that of the whole.
        """
        mixed = (sums >> 32).bitwise_and_(LOW_HALF).bitwise_xor_(sums)
        digests = mixed.mul_(self._keys_at(first_position, sums.shape[1])).sum(1)
        return [int(digest) % WORD_MODULUS for digest in digests.tolist()]

    def _gather(self, words: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        if isinstance(rows, slice):
            return words[rows]
        return torch.index_select(words, 0, rows, out=self._gathered[: rows.shape[0]])

    def _keys_at(self, first: int, count: int) -> torch.Tensor:
        if first + count > self._position_keys.shape[0]:
            grown = max(first + count, 2 * self._position_keys.shape[0])
            self._position_keys = _keys(grown, seed=2).to(self._position_keys.device)
        return self._position_keys[first : first + count]


def _keys(count: int, seed: int) -> torch.Tensor:
    """`count` odd 64-bit constants: splitmix64 (Steele, Lea, Flood 2014) of the index; a prefix never changes with `count`."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 40)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(z.view(np.int64))
