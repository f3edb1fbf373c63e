"""Multi-head latent attention (MLA) over the paged pool: one latent per token that all heads share.

A head's key is (key_up · latent, rotated part) and its value is latent · value_up. Two forms compute the same:

- **absorbed**: the queries go into the latent space and attend to the entries themselves, as one KV head of entry width; the
  cache is never expanded. Per query, key and head it costs (entry + latent) instead of (key + value) products: 3.4 times as many
  in LongCat-Flash, but none for the context.
- **expanded**: keys and values of the whole context are computed first, at latent · (nope + value) products per token and head.
  Worth it where many queries share them: from about 170 on, counted; see `EXPANDED_FROM`.

The entries themselves serve as the values of the absorbed form, and the last values of what comes back are dropped: torch's fused
kernels take keys and values of one width only, and without them it is slower by up to ten times. The expanded values are padded
for the same reason.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from engine.attention.context import Contexts, DecodeGroup, SpanContext, plan_contexts
from engine.batch import Batch
from engine.kv_pool import KVPool

EXPANDED_FROM = 128
"""Query tokens of one sequence from which its context is expanded. Measured on one core with 8 heads of LongCat-Flash's sizes,
milliseconds, absorbed and expanded: 64 tokens over 1,024 46 and 55 (float32), 29 and 81 (bfloat16); 256 over 1,024 143 and 108,
114 and 77; one over 4,096 6 and 181, 3 and 172."""


@dataclass(frozen=True)
class LatentShape:
    """One attention's widths, and the factor on its scores."""

    heads: int
    nope: int
    """Of a query or key: the part without position."""
    rope: int
    latent: int
    value: int
    scale: float


@dataclass(frozen=True)
class LatentProjections:
    """One attention's ways out of the latent space: key_up [heads, nope, latent], value_up [heads, latent, value]."""

    key_up: torch.Tensor
    value_up: torch.Tensor


class MlaAttention:
    """AttentionBackend over a KVPool whose entry is the latent, then the rotated part of the key. Queries are [tokens, heads,
    nope + rope], rotated; what comes back is [tokens, heads * value]."""

    def __init__(self, pool: KVPool, shape: LatentShape, layers: list[LatentProjections]) -> None:
        """`layers`: one for each KV layer of the pool."""
        self._pool = pool
        self.shape = shape
        self.layers = layers

    def plan(self, batch: Batch) -> Contexts:
        return plan_contexts(batch, self._pool)

    def attend(self, layer: int, query: torch.Tensor, plan: Contexts) -> torch.Tensor:
        shape = self.shape
        attended = query.new_empty(query.shape[0], shape.heads, shape.value)
        for context in plan:
            rows = query[context.rows]
            if isinstance(context, SpanContext) and context.length >= EXPANDED_FROM:
                attended[context.rows] = self._expanded(layer, rows, context)
            else:
                attended[context.rows] = self._absorbed(layer, rows, context)
        return attended.flatten(1)

    def _absorbed(self, layer: int, query: torch.Tensor, context: SpanContext | DecodeGroup) -> torch.Tensor:
        up = self.layers[layer]
        return projected_out(self._attend_entries(layer, absorbed(query, up, self.shape), context), up)

    def _attend_entries(self, layer: int, queries: torch.Tensor, context: SpanContext | DecodeGroup) -> torch.Tensor:
        """Weighted means of latents, [heads, tokens, latent], for `queries` [heads, tokens, entry]."""
        entries = context.entries(layer)
        if isinstance(context, SpanContext) and not context.is_decode:
            entries = entries.view(1, 1, *entries.shape)
            queries = queries.unsqueeze(0)
            attended = self._attend(queries, entries, entries, context.mask, context.is_causal, shares_keys=True)[0]
        else:  # a few tokens each of one or several sequences; their heads are query rows
            heads, tokens, width = queries.shape
            entries = entries.view(-1, 1, *entries.shape[-2:])
            rows = queries.transpose(0, 1).reshape(entries.shape[0], 1, -1, width)
            attended = self._attend(rows, entries, entries, context.mask_of_heads(heads))
            attended = attended.reshape(tokens, heads, width).transpose(0, 1)
        return attended[..., : self.shape.latent]

    def _expanded(self, layer: int, query: torch.Tensor, context: SpanContext) -> torch.Tensor:
        shape, up = self.shape, self.layers[layer]
        latents, rotated = context.entries(layer).split_with_sizes((shape.latent, shape.rope), dim=-1)
        nope = torch.matmul(latents, up.key_up.transpose(1, 2))
        keys = torch.cat((nope, rotated.expand(shape.heads, -1, -1)), dim=-1)
        width = max(keys.shape[-1], shape.value)
        values = pad(torch.matmul(latents, up.value_up), (0, width - shape.value))
        keys, queries = (pad(each, (0, width - each.shape[-1])) for each in (keys, query.transpose(0, 1)))
        queries, keys, values = queries.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0)
        attended = self._attend(queries, keys, values, context.mask, context.is_causal)
        return attended[0, ..., : shape.value].transpose(0, 1)

    def _attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool = False,
        *,
        shares_keys: bool = False,
    ) -> torch.Tensor:
        return scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=mask,
            is_causal=is_causal,
            scale=self.shape.scale,
            enable_gqa=shares_keys,
        )


def absorbed(query: torch.Tensor, up: LatentProjections, shape: LatentShape) -> torch.Tensor:
    """Queries [tokens, heads, nope + rope] in the space of the pool's entries, [heads, tokens, entry]."""
    into_latent = torch.bmm(query[..., : shape.nope].transpose(0, 1), up.key_up)
    return torch.cat((into_latent, query[..., shape.nope :].transpose(0, 1)), dim=-1)


def projected_out(latents: torch.Tensor, up: LatentProjections) -> torch.Tensor:
    """Means of latents [heads, tokens, latent] as each head's values, [tokens, heads, value]."""
    return torch.bmm(latents, up.value_up).transpose(0, 1)
