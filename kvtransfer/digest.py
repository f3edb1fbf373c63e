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

    def of_chunk(self, words: torch.Tensor, blocks: slice | torch.Tensor, first_position: int) -> torch.Tensor:
        """Digest of `words[blocks]` as a scalar int64 tensor; words `[num_blocks, block_words]`, at most `chunk_blocks` blocks.

        `first_position` is the first block's place in its request. Sums (mod 2^64) over chunks are the digest of the whole.
        """
        rows = self._gather(words, blocks)
        count = rows.shape[0]
        mixed = self._mixed[:count]
        torch.bitwise_right_shift(rows, 32, out=mixed)
        mixed.bitwise_and_(LOW_HALF).bitwise_xor_(rows).mul_(self._word_keys)
        sums = mixed.sum(1)
        sums ^= (sums >> 32) & LOW_HALF
        return (sums * self._keys_at(first_position, count)).sum()

    def of_run(self, words: torch.Tensor, blocks: torch.Tensor, first_position: int) -> torch.Tensor:
        """Digest of any number of blocks: `blocks` is a 1-D index into `words [num_blocks, block_words]`."""
        total = torch.zeros((), dtype=torch.int64, device=words.device)
        for start in range(0, blocks.shape[0], self.chunk_blocks):
            total += self.of_chunk(words, blocks[start : start + self.chunk_blocks], first_position + start)
        return total

    def _gather(self, words: torch.Tensor, blocks: slice | torch.Tensor) -> torch.Tensor:
        if isinstance(blocks, slice):
            return words[blocks]
        return torch.index_select(words, 0, blocks, out=self._gathered[: blocks.shape[0]])

    def _keys_at(self, first: int, count: int) -> torch.Tensor:
        if first + count > self._position_keys.shape[0]:
            grown = max(first + count, 2 * self._position_keys.shape[0])
            self._position_keys = _keys(grown, seed=2).to(self._position_keys.device)
        return self._position_keys[first : first + count]


def unsigned(digests: list[torch.Tensor]) -> list[int]:
    """Scalar digests as integers in [0, 2^64): one wait for the device, however many there are."""
    return [int(value) % WORD_MODULUS for value in torch.stack(digests).tolist()] if digests else []


def _keys(count: int, seed: int) -> torch.Tensor:
    """`count` odd 64-bit constants: splitmix64 (Steele, Lea, Flood 2014) of the index; a prefix never changes with `count`."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 40)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(z.view(np.int64))
