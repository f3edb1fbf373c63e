"""The digest of KV blocks: made of 64-bit integer operations that every device has.

Of a run of blocks at positions p, p+1, ... of a request, each of words w[0], w[1], ...:

    block  = sum over i of WORD_KEY[i] * mix(w[i])            mod 2^64
    digest = sum over p of POSITION_KEY[p] * mix(block[p])    mod 2^64        where mix(x) = x ^ (x >>> 32)

mix is a bijection and every key is odd, so a change of any one word is always found. The keys differ, so exchanged words and
exchanged blocks are found. Without mix a plain weighted sum would miss any two flips of a top bit: each adds 2^63 whatever its
key. Digests of adjacent runs of one layer add up to the digest of the whole. This finds accidents; it is not a signature.
"""

import numpy as np
import torch

from kvtransfer.block_sums import LOW_HALF, block_sums

CPU_CHUNK_WORDS = 32 * 1024
"""256 KiB: stays in the second-level cache, and is the size up to which torch does not start helper threads."""

CUDA_CHUNK_WORDS = 16 * 1024 * 1024

WORD_MODULUS = 1 << 64


class BlockDigest:
    """Digests runs of blocks on one device. Not thread-safe: it owns scratch memory, so each thread makes its own."""

    def __init__(self, block_words: int, device: torch.device) -> None:
        chunk_words = CPU_CHUNK_WORDS if device.type == "cpu" else CUDA_CHUNK_WORDS
        self.chunk_blocks = max(1, chunk_words // block_words)
        """The blocks that are worked on at once."""
        self._word_keys = _keys(block_words, seed=1).to(device)
        self._position_keys = _keys(1024, seed=2).to(device)
        self.blocks = block_sums(self._word_keys, self.chunk_blocks)
        """At most `chunk_blocks` at once."""

    def combine(self, sums: torch.Tensor, first_position: int) -> list[int]:
        """The digest of each layer, in [0, 2^64): `sums [layers, blocks]`, the first block at `first_position` of its request.

        Waits for the device. Digests of adjacent runs add up (mod 2^64) to that of the whole.
        """
        mixed = (sums >> 32).bitwise_and_(LOW_HALF).bitwise_xor_(sums)
        digests = mixed.mul_(self._keys_at(first_position, sums.shape[1])).sum(1)
        return [int(digest) % WORD_MODULUS for digest in digests.tolist()]

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
