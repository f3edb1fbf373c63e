"""Latent attention in both forms: the same result, whatever is attended to."""

import pytest
import torch

from engine.attention.context import SpanContext
from engine.attention.mla import LatentProjections, LatentShape, MlaAttention
from engine.batch import Span
from engine.kv_pool import KVPool
from engine.sequence import Sequence
from protocol.sampling import SamplingParams

BLOCK_SIZE, BLOCKS = 8, 12


@pytest.mark.parametrize("value", [4, 16, 40], ids=["narrow-values", "values-as-queries", "wide-values"])
@pytest.mark.parametrize("scattered", [False, True], ids=["one-run", "scattered"])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 40), (40, 41), (13, 60), (50, 60)])
def test_absorbed_and_expanded_agree(value: int, scattered: bool, start: int, end: int) -> None:
    shape = LatentShape(heads=3, nope=12, rope=4, latent=20, value=value, scale=0.3)
    drawn = torch.Generator().manual_seed(end)
    cpu = torch.device("cpu")
    pool = KVPool(num_layers=1, num_blocks=BLOCKS, block_size=BLOCK_SIZE, entry_width=24, dtype=torch.float32, device=cpu)
    blocks = list(range(BLOCKS))[:: -1 if scattered else 1]
    span = Span(Sequence("a", [0] * end, SamplingParams(), blocks=blocks), start, end)
    pool.data.fill_(torch.nan)
    slots = torch.tensor([blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE for at in range(end)])
    pool.write(0, slots, torch.randn(end, 24, generator=drawn))
    up = LatentProjections(torch.randn(3, 12, 20, generator=drawn), torch.randn(3, 20, value, generator=drawn))
    attention, context = MlaAttention(pool, shape, [up]), SpanContext(pool, 0, span)
    query = torch.randn(end - start, 3, 16, generator=drawn)

    absorbed, expanded = attention._absorbed(0, query, context), attention._expanded(0, query, context)

    assert absorbed.shape == (end - start, 3, value)
    assert torch.allclose(absorbed, expanded, atol=1e-4)
