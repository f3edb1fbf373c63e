"""Holds the kernel of paged attention against gathering. Run by test_paged_kernel.py in a process of its own: Triton decides when
it is imported whether it interprets.

    TRITON_INTERPRET=1 python -m tests.unit.engine.paged_kernel_check interpret
    python -m tests.unit.engine.paged_kernel_check compile
"""

import os
import sys

import torch

from engine.attention.paged import BlockTables, EntryHeads, PagedAttention
from engine.kv_pool import KVPool

CPU = torch.device("cpu")
POOL_BLOCKS, TABLE_WIDTH = 40, 12
HEADS = {
    "llama": EntryHeads(4, 2, 16, 16, 0, 32, 0.25),
    "smollm": EntryHeads(9, 3, 64, 64, 0, 192, 0.125),
    "odd width": EntryHeads(4, 2, 96, 96, 0, 192, 0.1),
    "tiny latent": EntryHeads(4, 1, 40, 32, 0, 0, 0.2),
    "odd latent": EntryHeads(6, 1, 24, 20, 0, 0, 0.3),
    "chat": EntryHeads(64, 1, 576, 512, 0, 0, 0.07),
}
TYPES = {
    **dict.fromkeys(("query", "entries", "attended"), "*bf16"),
    **dict.fromkeys(("sums", "largest", "weights"), "*fp32"),
    "blocks": "*i32",
    "positions": "*i64",
    "scale": "fp32",
}
LARGE = {"llama 8b": EntryHeads(32, 8, 128, 128, 0, 1024, 0.088), "chat": HEADS["chat"]}


def interpret() -> None:
    for name, heads in HEADS.items():
        for sequences, rows_each in ((3, 1), (2, 3)):
            print(name, sequences, rows_each, f"{largest_difference(heads, sequences, rows_each):.1e}")


def largest_difference(heads: EntryHeads, sequences: int, rows_each: int) -> float:
    """In scattered blocks, of contexts of any length; what nobody may see is not a number."""
    drawn = torch.Generator().manual_seed(0)
    width = heads.key_width if heads.is_latent else 2 * heads.kv_heads * heads.key_width
    pool = KVPool(num_layers=1, num_blocks=POOL_BLOCKS, block_size=16, entry_width=width, dtype=torch.float32, device=CPU)
    blocks = torch.randperm(POOL_BLOCKS, generator=drawn)[: sequences * TABLE_WIDTH].view(sequences, -1).int()
    last = torch.tensor([5, 170, 96])[:sequences]
    pool.data.fill_(torch.nan)
    for row, end in zip(blocks.tolist(), (last + 1).tolist(), strict=True):
        for place in range(end):
            pool.layer_tokens[0][row[place // 16] * 16 + place % 16] = torch.randn(width, generator=drawn)
    positions = (last.unsqueeze(1) - torch.arange(rows_each - 1, -1, -1)).flatten()
    tables = BlockTables(blocks, positions)
    query = torch.randn(heads.heads, sequences * rows_each, heads.key_width, generator=drawn).transpose(0, 1)
    kernel = PagedAttention(pool, heads)
    assert kernel._uses_kernel
    del os.environ["TRITON_INTERPRET"]
    gathering = PagedAttention(pool, heads)
    os.environ["TRITON_INTERPRET"] = "1"
    found, expected = (each.attend(0, query, each.plan(tables)) for each in (kernel, gathering))
    assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    return (found - expected).abs().max().item()


def compile_for_gpus() -> None:
    """To machine code, which needs no GPU; and whether what it holds at once fits."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engine.attention import paged_kernel

    shared_bytes = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
    for capability, limit in shared_bytes.items():
        for name, heads in LARGE.items():
            launch = paged_kernel.launch_of(heads, rows_each=2, sequences=64, block_size=16, processors=132)
            passes = (
                (paged_kernel.attend_parts, launch.parts, launch.parts_options),
                (paged_kernel.join_parts, launch.join, launch.join_options),
            )
            for kernel, constants, options in passes:
                signature = {each: "constexpr" if each in constants else TYPES.get(each, "i32") for each in kernel.arg_names}
                source = ASTSource(kernel, signature=signature, constexprs=constants)
                binary = compiled(source, target=GPUTarget("cuda", capability, 32), options=options)
                assert binary.metadata.shared <= limit, (name, capability, binary.metadata.shared)
                print(name, capability, len(binary.asm["cubin"]), binary.metadata.shared)


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_gpus}[sys.argv[1]]()
