"""Captured decode steps: a replay is what the same step computes when it is called, and the kernel is what gathering gives."""

import logging
from pathlib import Path

import pytest
import torch
from gpu_support import load, logits, sequence

from engine.attention.paged import BlockTables, EntryHeads, PagedAttention
from engine.batch import Span
from engine.decode_graph.choice import step_graphs, what_prevents
from engine.kv_pool import KVPool
from engine.tiny import write_tiny_llama
from engine.tiny_longcat import write_tiny_longcat
from tests.unit.engine.conftest import EngineUnderTest, greedy

WAYS = ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "seed": 4})
HEADS = {
    "llama": EntryHeads(32, 8, 128, 128, 0, 1024, 0.088),
    "odd width": EntryHeads(4, 2, 96, 96, 0, 192, 0.1),
    "chat": EntryHeads(64, 1, 576, 512, 0, 0, 0.07),
}


@pytest.mark.parametrize("rows_each", [1, 2, 5])
@pytest.mark.parametrize("name", HEADS)
def test_the_kernel_is_gathering(gpu: torch.device, name: str, rows_each: int) -> None:
    heads, drawn = HEADS[name], torch.Generator().manual_seed(0)
    width = heads.key_width if heads.is_latent else 2 * heads.kv_heads * heads.key_width
    sizes = {"num_layers": 1, "num_blocks": 600, "block_size": 16, "entry_width": width}
    pools = [KVPool(**sizes, dtype=dtype, device=device) for dtype, device in ((torch.bfloat16, gpu), (torch.float32, "cpu"))]
    pools[1].data.normal_(generator=drawn)
    pools[0].data.copy_(pools[1].data)
    pools[1].data.copy_(pools[0].data)
    blocks = torch.randperm(600, generator=drawn).view(4, 150).int()
    positions = (torch.tensor([4, 47, 1000, 2399]).unsqueeze(1) - torch.arange(rows_each - 1, -1, -1)).flatten()
    query = torch.randn(4 * rows_each, heads.heads, heads.key_width, generator=drawn).bfloat16()
    results = []
    for pool in pools:
        attention, device = PagedAttention(pool, heads), pool.data.device
        plan = attention.plan(BlockTables(blocks.to(device), positions.to(device)))
        results.append(attention.attend(0, query.to(device, pool.dtype), plan).float().cpu())
    assert (results[0] - results[1]).norm() < 0.02 * results[1].norm()


@pytest.mark.parametrize("family", ["llama", "longcat"])
@pytest.mark.parametrize("speculation", ["auto", "ngram"])
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_replay_is_the_call(
    tmp_path: Path,
    gpu: torch.device,
    family: str,
    speculation: str,
    steps_in_flight: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Token for token, for the kernels and their shapes are the same; and as likely as the likeliest by the CPU's logits."""
    write = write_tiny_llama if family == "llama" else write_tiny_longcat
    folder = write(tmp_path, dtype=torch.bfloat16)
    settings = {
        "speculation": speculation,
        "draft_tokens": 3,
        "steps_in_flight": steps_in_flight,
        "max_model_len": 512,
        "max_sequences": 8,
    }
    with caplog.at_level(logging.INFO, logger="engine.decode_graph"):
        captured = load(folder, gpu.type, "bfloat16", **settings)
    capability = torch.cuda.get_device_capability(gpu)
    if (obstacle := what_prevents(captured.config, captured.model, torch.bfloat16, capability)) is not None:
        pytest.skip(obstacle)
    assert captured._forward_pass._graphs is not None, caplog.text
    called = load(folder, gpu.type, "bfloat16", **settings, cuda_graphs="off")
    called._forward_pass._graphs = step_graphs(called.config, called.model, called.pool, called._attention, 512)
    answers = []
    for engine in (captured, called):
        requests = [
            greedy(str(n), [4 + place % 7 + n for place in range(9 + 5 * n)], **{"max_tokens": 12 + 3 * n, **WAYS[n % 3]})
            for n in range(9)
        ]
        EngineUnderTest(engine, engine._metrics._metrics).finish(*requests)
        answers.append([each.tokens for each in requests])
    if speculation == "auto":  # which n-grams pay hangs on times
        assert answers[0] == answers[1]
    exact = load(folder, "cpu", "float32")
    tokens = answers[0][0]
    after = logits(exact, Span(sequence(exact, tokens), 0, len(tokens)))[8:-1]
    chosen = after.gather(1, torch.tensor(tokens[9:]).unsqueeze(1)).squeeze(1)
    assert ((after.amax(dim=1) - chosen) / after.std(dim=1)).max() < 0.5
