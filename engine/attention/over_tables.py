"""The attention that decode steps over block tables use in place of a model's own."""

from engine.attention.base import AttentionBackend
from engine.attention.mla import MlaAttention
from engine.attention.paged import EntryHeads
from engine.attention.paged_gqa import PagedGqaAttention
from engine.attention.paged_mla import PagedMlaAttention
from engine.attention.sdpa import SdpaAttention
from engine.kv_pool import KVPool


def over_block_tables(attention: AttentionBackend, pool: KVPool) -> AttentionBackend:
    """The same attention for a PagedBatch. `attention`: of a model that one process computes alone, over `pool`."""
    if isinstance(attention, MlaAttention):
        return PagedMlaAttention(pool, attention.shape, attention.layers)
    assert isinstance(attention, SdpaAttention)
    shape = attention.shape
    heads = EntryHeads(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        key_width=shape.head_dim,
        value_width=shape.head_dim,
        keys_from=0,
        values_from=shape.kv_heads * shape.head_dim,
        scale=shape.head_dim**-0.5,
    )
    return PagedGqaAttention(pool, heads)
