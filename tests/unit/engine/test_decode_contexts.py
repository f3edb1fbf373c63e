"""Attention of several tokens of a sequence at once: what each of them alone attends to, however the batch is laid out."""

from typing import Any

import pytest
import torch

from engine.attention.base import AttentionBackend
from engine.attention.context import DECODE_LENGTH, GATHERED_CONTEXT, DecodeGroup, SpanContext, plan_contexts
from engine.attention.mla import LatentProjections, LatentShape, MlaAttention
from engine.attention.sdpa import SdpaAttention, Shape
from engine.batch import Batch, Span
from engine.kv_pool import KVPool
from engine.sequence import Sequence
from protocol.sampling import SamplingParams

BLOCK_SIZE, BLOCKS = 16, 200
CPU = torch.device("cpu")
HEADS, WIDTH = 6, 16
SPANS = [(40, 43), (12, 13), (44, 47), (100, 101), (0, 3), (3, 8), (600, 605), (700, 700 + DECODE_LENGTH), (600, 640), (50, 53)]
"""Start and end: among them several of one length, prompts' beginnings, contexts beyond what is gathered, and long chunks."""


def make_pool(entry_width: int) -> KVPool:
    pool = KVPool(
        num_layers=1, num_blocks=BLOCKS, block_size=BLOCK_SIZE, entry_width=entry_width, dtype=torch.float32, device=CPU
    )
    pool.data.normal_(generator=torch.Generator().manual_seed(0))
    return pool


def grouped() -> tuple[KVPool, AttentionBackend]:
    pool = make_pool(2 * 2 * WIDTH)
    return pool, SdpaAttention(pool, Shape(heads=HEADS, kv_heads=2, head_dim=WIDTH))


def latent() -> tuple[KVPool, AttentionBackend]:
    pool = make_pool(24)
    shape = LatentShape(heads=HEADS, nope=12, rope=4, latent=20, value=8, scale=0.3)
    drawn = torch.Generator().manual_seed(1)
    up = LatentProjections(torch.randn(HEADS, 12, 20, generator=drawn), torch.randn(HEADS, 20, 8, generator=drawn))
    return pool, MlaAttention(pool, shape, [up])


def spans_of(pool: KVPool) -> list[Span]:
    """Every second one in scattered blocks. What no span may see is not a number."""
    free = list(range(BLOCKS))
    seen = torch.zeros(BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    spans = []
    for index, (start, end) in enumerate(SPANS):
        count = -(-end // BLOCK_SIZE)
        blocks, free = free[:count], free[count:]
        blocks = blocks[::-1] if index % 2 else blocks
        spans.append(Span(Sequence(str(index), [0] * end, SamplingParams(), blocks=blocks), start, end))
        slots = [blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in range(end)]
        seen[slots] = True
    pool.layer_tokens[0][~seen] = torch.nan
    return spans


@pytest.mark.parametrize("backend", [grouped, latent])
def test_together_is_alone(backend: Any) -> None:
    pool, attention = backend()
    spans = spans_of(pool)
    batch = Batch(spans, BLOCK_SIZE, CPU)
    query = torch.randn(batch.num_tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(2))

    together = attention.attend(0, query, attention.plan(batch))

    alone, row = [], 0
    for span in spans:
        for position in range(span.start, span.end):
            plan = [SpanContext(pool, 0, Span(span.sequence, position, position + 1))]
            alone.append(attention.attend(0, query[row : row + 1], plan))
            row += 1
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_short_contexts_of_one_length_are_one_call() -> None:
    pool, _ = grouped()
    contexts = plan_contexts(Batch(spans_of(pool), BLOCK_SIZE, CPU), pool)
    groups = [(each.length, each.count) for each in contexts if isinstance(each, DecodeGroup)]
    assert groups == [(3, 3)]  # (0, 3) is much shorter than the others of its length
    alone = [each for each in contexts if isinstance(each, SpanContext)]
    assert sum(each.length for each in alone) + 9 == sum(end - start for start, end in SPANS)
    assert [(each.length, each.size) for each in alone if not each.is_decode] == [(40, 640), (3, 3)]
    assert max(each.size for each in alone) > GATHERED_CONTEXT
