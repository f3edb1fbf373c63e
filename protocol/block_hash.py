"""The names of KV blocks: a block is known by the hash of its tokens and all tokens before it, on workers and routers alike."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

HASH_BYTES = 16


def chained_hashes(tokens: Sequence[int], block_size: int) -> Iterator[bytes]:
    """The hash of each full block of `tokens`, in order; each covers its block and all before it.

    Stable over processes and machines, so that peers may compare them.
    """
    parent = b""
    values = np.asarray(tokens, dtype="<i4")
    for end in range(block_size, len(values) + 1, block_size):
        parent = blake2b(parent + values[end - block_size : end].tobytes(), digest_size=HASH_BYTES).digest()
        yield parent


def short_hash(block_hash: bytes) -> int:
    """What travels of a hash (CacheChange): enough to guess where a prefix lies, and never proof that it does."""
    return int.from_bytes(block_hash[:8], "little")
