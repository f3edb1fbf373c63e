"""What one attention reads and computes, of the two kinds that models have."""

from dataclasses import dataclass
from typing import Protocol


class AttentionShape(Protocol):
    """One attention of one layer. Counts are of values and of floating-point operations, a multiply-add being two."""

    @property
    def input_parameters(self) -> int:
        """Of the projections to queries, keys and values."""

    @property
    def output_parameters(self) -> int:
        """Of the projection back to the hidden state."""

    @property
    def kv_values(self) -> int:
        """Values in the KV cache per token."""

    @property
    def decode_flops(self) -> int:
        """Per query and token of its context, over all heads, where the context is read from the cache."""

    @property
    def prefill_flops(self) -> int:
        """The same where keys and values of the prompt were computed in this pass."""


@dataclass(frozen=True)
class GroupedAttention:
    """Query heads that share key and value heads (GQA); with as many of both it is plain multi-head attention."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def input_parameters(self) -> int:
        return self.hidden * self.head_dim * (self.heads + 2 * self.kv_heads)

    @property
    def output_parameters(self) -> int:
        return self.heads * self.head_dim * self.hidden

    @property
    def kv_values(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    @property
    def decode_flops(self) -> int:
        return 2 * self.heads * 2 * self.head_dim

    @property
    def prefill_flops(self) -> int:
        return self.decode_flops


@dataclass(frozen=True)
class LatentAttention:
    """MLA: the cache holds one latent and one rotated key per token, for all heads. Decoding absorbs the up-projection into the
    queries, so every head works on the latent's width; a prompt is computed with its keys and values expanded."""

    hidden: int
    heads: int
    query_rank: int
    """0: queries are projected at once."""
    latent: int
    unrotated: int
    rotated: int
    value: int

    @property
    def input_parameters(self) -> int:
        per_head = self.unrotated + self.rotated
        query = self.hidden * self.heads * per_head
        if self.query_rank:
            query = self.query_rank * (self.hidden + self.heads * per_head)
        up = self.latent * self.heads * (self.unrotated + self.value)
        return query + self.hidden * self.kv_values + up

    @property
    def output_parameters(self) -> int:
        return self.heads * self.value * self.hidden

    @property
    def kv_values(self) -> int:
        return self.latent + self.rotated

    @property
    def decode_flops(self) -> int:
        return 2 * self.heads * (self.kv_values + self.latent)

    @property
    def prefill_flops(self) -> int:
        return 2 * self.heads * (self.unrotated + self.rotated + self.value)
