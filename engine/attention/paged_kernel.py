"""The kernel of paged decode attention, in Triton. Two passes, as in Flash-Decoding (Dao et al., 2023):

1. Every context is cut into `splits` parts; one program per part, KV head and tile of query rows walks the part's block table with
   an online softmax, and leaves a sum that is not normalised, its largest score and its weight.
2. One program per query row and head joins the parts.

How many parts there are is fixed by the number of sequences, how long they are is read on the device: so launches hang on shapes
alone. A latent whose width is a power of two is read once, as key and as value.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from engine.attention.paged import BlockTables, EntryHeads

MOST_SPLITS = 32
PROGRAMS_PER_PROCESSOR = 2
"""Of the first pass, per multiprocessor, that splitting aims at."""
ASSUMED_PROCESSORS = 4
"""Where there is no GPU and Triton interprets."""
WIDE = 256
"""Values of a key from which fewer rows and tokens are held at once: registers and shared memory are what bounds them."""
SMALLEST = 16
"""Side of the smallest tile that tl.dot takes."""


@dataclass(frozen=True)
class Launch:
    """How both passes are launched: it hangs on shapes alone."""

    grid: tuple[int, int, int]
    splits: int
    values: int
    """Width of a value as a tile."""
    parts: dict[str, Any]
    """What the first pass is compiled for."""
    join: dict[str, Any]
    is_wide: bool

    @property
    def parts_options(self) -> dict[str, int]:
        return {"num_warps": 8 if self.is_wide else 4, "num_stages": 2}

    @property
    def join_options(self) -> dict[str, int]:
        return {"num_warps": 4}


def launch_of(heads: EntryHeads, rows_each: int, sequences: int, block_size: int, processors: int) -> Launch:
    """`processors`: multiprocessors of the GPU."""
    main = 1 << (heads.key_width.bit_length() - 1)
    rest = heads.key_width - main
    is_wide = heads.key_width > WIDE
    rows_of_head = rows_each * heads.group
    tile_rows = min(_tile(rows_of_head), 16 if is_wide else 64)
    tiles = -(-rows_of_head // tile_rows)
    splits = splits_for(sequences * heads.kv_heads * tiles, processors)
    values = _tile(heads.value_width)
    shared = {"value_width": heads.value_width, "values": values, "splits": splits}
    parts = shared | {
        "heads": heads.heads,
        "group": heads.group,
        "rows_each": rows_each,
        "block_size": block_size,
        "key_width": heads.key_width,
        "main": _tile(main),
        "main_width": main,
        "rest": _tile(rest) if rest else 0,
        "keys_from": heads.keys_from,
        "values_from": heads.values_from,
        "value_is_key": heads.is_latent and heads.value_width == main,
        "tiles": tiles,
        "tile_rows": tile_rows,
        "tile_tokens": 32 if is_wide else 64,
    }
    return Launch((sequences, heads.kv_heads * tiles, splits), splits, values, parts, shared, is_wide)


def splits_for(programs: int, processors: int) -> int:
    """So many parts of each context, a power of two, that every multiprocessor has something to do."""
    return min(MOST_SPLITS, _power_of_two(-(-processors * PROGRAMS_PER_PROCESSOR // programs)))


def attend(query: torch.Tensor, entries: torch.Tensor, tables: BlockTables, heads: EntryHeads, block_size: int) -> torch.Tensor:
    """`query` [rows, heads, key_width], contiguous in its last dimension, and `entries` [slots, entry width] → [rows, heads,
    value_width]."""
    launch = launch_of(heads, tables.rows_each, tables.sequences, block_size, _processors(query.device))
    rows = query.shape[0]
    sums = torch.empty(rows, heads.heads, launch.splits, launch.values, dtype=torch.float32, device=query.device)
    largest = torch.empty(rows, heads.heads, launch.splits, dtype=torch.float32, device=query.device)
    weights = torch.empty_like(largest)
    attend_parts[launch.grid](
        query,
        entries,
        tables.blocks,
        tables.positions,
        sums,
        largest,
        weights,
        query.stride(0),
        query.stride(1),
        entries.stride(0),
        tables.blocks.stride(0),
        heads.scale,
        **launch.parts,
        **launch.parts_options,
    )
    attended = query.new_empty(rows, heads.heads, heads.value_width)
    join_parts[(rows * heads.heads,)](sums, largest, weights, attended, **launch.join, **launch.join_options)
    return attended


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return ASSUMED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _tile(width: int) -> int:
    return max(SMALLEST, _power_of_two(width))


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


@triton.jit
def attend_parts(
    query,
    entries,
    blocks,
    positions,
    sums,
    largest,
    weights,
    query_row_stride,
    query_head_stride,
    entry_stride,
    table_stride,
    scale,
    heads: tl.constexpr,
    group: tl.constexpr,
    rows_each: tl.constexpr,
    block_size: tl.constexpr,
    key_width: tl.constexpr,
    main: tl.constexpr,
    main_width: tl.constexpr,
    rest: tl.constexpr,
    value_width: tl.constexpr,
    values: tl.constexpr,
    keys_from: tl.constexpr,
    values_from: tl.constexpr,
    value_is_key: tl.constexpr,
    splits: tl.constexpr,
    tiles: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_tokens: tl.constexpr,
):
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1) // tiles
    split = tl.program_id(2)
    row = (tl.program_id(1) % tiles) * tile_rows + tl.arange(0, tile_rows)
    is_row = row < rows_each * group
    token = (sequence * rows_each + row // group).to(tl.int64)
    head = kv_head * group + row % group
    position = tl.load(positions + token, mask=is_row, other=-1).to(tl.int32)
    length = tl.load(positions + sequence * rows_each + rows_each - 1).to(tl.int32) + 1
    share = tl.cdiv(tl.cdiv(length, splits), tile_tokens) * tile_tokens
    begin = split * share
    end = tl.minimum(begin + share, length)

    # A key's width is a power of two and what is left: both are tiles of their own.
    wide = tl.arange(0, main)
    of_query = query + token * query_row_stride + head * query_head_stride
    query_main = tl.load(of_query[:, None] + wide[None, :], mask=is_row[:, None] & (wide < main_width)[None, :], other=0.0)
    if rest > 0:
        narrow = main_width + tl.arange(0, rest)
        has_rest = narrow < key_width
        query_rest = tl.load(of_query[:, None] + narrow[None, :], mask=is_row[:, None] & has_rest[None, :], other=0.0)
    width = tl.arange(0, values)

    top = tl.full((tile_rows,), float("-inf"), tl.float32)
    weight = tl.zeros((tile_rows,), tl.float32)
    attended = tl.zeros((tile_rows, values), tl.float32)
    for start in range(begin, end, tile_tokens):
        at = start + tl.arange(0, tile_tokens)
        is_inside = at < end
        block = tl.load(blocks + sequence * table_stride + at // block_size, mask=is_inside, other=0)
        entry = entries + (block.to(tl.int64) * block_size + at % block_size) * entry_stride
        of_key = entry + keys_from + kv_head * key_width
        key = tl.load(of_key[:, None] + wide[None, :], mask=is_inside[:, None] & (wide < main_width)[None, :], other=0.0)
        scores = tl.dot(query_main, tl.trans(key), input_precision="ieee")
        if rest > 0:
            key_rest = tl.load(of_key[:, None] + narrow[None, :], mask=is_inside[:, None] & has_rest[None, :], other=0.0)
            scores += tl.dot(query_rest, tl.trans(key_rest), input_precision="ieee")
        is_seen = is_inside[None, :] & (at[None, :] <= position[:, None])
        scores = tl.where(is_seen, scores * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # of rows that have seen nothing yet
        share_of = tl.exp(scores - base[:, None])
        kept = tl.exp(top - base)
        weight = weight * kept + tl.sum(share_of, 1)
        if value_is_key:
            value = key
        else:
            of_value = entry + values_from + kv_head * value_width
            value = tl.load(
                of_value[:, None] + width[None, :], mask=is_inside[:, None] & (width < value_width)[None, :], other=0.0
            )
        attended = attended * kept[:, None] + tl.dot(share_of.to(value.dtype), value, input_precision="ieee")
        top = higher

    part = (token * heads + head) * splits + split
    tl.store(sums + part[:, None] * values + width[None, :], attended, mask=is_row[:, None])
    tl.store(largest + part, top, mask=is_row)
    tl.store(weights + part, weight, mask=is_row)


@triton.jit
def join_parts(
    sums,
    largest,
    weights,
    attended,
    value_width: tl.constexpr,
    values: tl.constexpr,
    splits: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    width = tl.arange(0, values)
    every = tl.arange(0, splits)
    parts = row * splits + every
    top = tl.max(tl.load(largest + parts), 0)
    shares = tl.exp(tl.load(largest + parts) - top)
    total = tl.sum(shares * tl.load(weights + parts), 0)
    joined = tl.zeros((values,), tl.float32)
    for split in range(splits):
        share = tl.exp(tl.load(largest + row * splits + split) - top)
        joined += share * tl.load(sums + (row * splits + split) * values + width)
    tl.store(attended + row * value_width + width, (joined / total).to(attended.dtype.element_ty), mask=width < value_width)
