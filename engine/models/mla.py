"""Multi-head latent attention's projections: from the residual stream to queries and KV entries, and back."""

from dataclasses import dataclass

import torch

from engine.attention.mla import LatentProjections
from engine.linear import Linear, Product
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable


@dataclass(frozen=True)
class MlaParts:
    """One attention's weights, ready to compute: scales are in the norms, rotary pairs lie half a head apart."""

    down: Linear
    """To the query's low rank, the latent and the rotated part of the key, side by side."""
    query_norm: RmsNorm
    query_up: Linear
    latent_norm: RmsNorm
    output: Product
    projections: LatentProjections


class Mla:
    """One attention without its core, which is the backend's (engine/attention/mla.py)."""

    def __init__(self, parts: MlaParts, *, query_rank: int, latent: int, nope: int) -> None:
        self._parts = parts
        self._query_rank = query_rank
        self._latent = latent
        self._nope = nope
        self.projections = parts.projections
        self.output = parts.output

        self.down = parts.down
        """What `queries` and `entries` are made of: of x [tokens, hidden], a row of low ranks per token."""

    def queries(self, down: torch.Tensor, rope: RopeTable, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
        """Rotated, [tokens, heads, nope + rope]."""
        tokens, rotated = down.shape[0], cos.shape[-1]
        low_rank = self._parts.query_norm(down[:, : self._query_rank])
        query = self._parts.query_up(low_rank).view(tokens, -1, self._nope + rotated)
        rope.rotate_(query[..., self._nope :], cos, signed_sin)
        return query

    def entries(self, down: torch.Tensor, rope: RopeTable, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
        """KV entries [tokens, latent + rope], ready for the pool. Once per `down`: it is rotated in place."""
        tokens, rotated = down.shape[0], cos.shape[-1]
        latent = self._parts.latent_norm(down[:, self._query_rank : self._query_rank + self._latent])
        key = down[:, -rotated:].view(tokens, 1, rotated)
        rope.rotate_(key, cos, signed_sin)
        return torch.cat((latent, key.squeeze(1)), dim=-1)


def halves_from_pairs(weight: torch.Tensor, rotated: int) -> torch.Tensor:
    """`weight` [heads, rows, inputs] with each head's last `rotated` rows reordered: what interleaved RoPE turns as neighbours,
    (0, 1), (2, 3), …, comes to lie half a head apart, where our rotation wants it. Scores are sums over the rows: unchanged."""
    kept, turned = weight.split_with_sizes((weight.shape[1] - rotated, rotated), dim=1)
    return torch.cat((kept, turned[:, ::2], turned[:, 1::2]), dim=1)
