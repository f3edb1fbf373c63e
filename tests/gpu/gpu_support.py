"""Engines and logits on either device."""

from pathlib import Path
from typing import Any

import torch

from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.engine import Engine
from engine.sequence import Sequence
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics


def load(folder: Path, device: str, dtype: str, **settings: Any) -> Engine:
    given = {"kv_memory_bytes": 4 << 20, "check_integrity": True, "speculation": "off", "native_kernels": "off"} | settings
    return Engine.load(folder, EngineConfig(device=device, dtype=dtype, **given), Metrics("decode", "test"))


def sequence(engine: Engine, tokens: list[int], name: str = "measured") -> Sequence:
    blocks = engine.kv_cache.allocate(engine.kv_cache.blocks_for(len(tokens)))
    return Sequence(name, tokens, SamplingParams(), blocks=blocks)


@torch.inference_mode()
def logits(engine: Engine, *spans: Span) -> torch.Tensor:
    """After every token of the spans, in float32 on the CPU."""
    hidden: list[torch.Tensor] = []
    batch = Batch(list(spans), engine.pool.block_size, engine.model.device)
    engine.model.forward(batch, engine.pool, engine._attention, on_hidden=hidden.append)
    return engine.model.logits(hidden[0]).float().cpu()


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the logits, all positions together, relative to how much they vary."""
    spread = (exact - exact.mean(dim=-1, keepdim=True)).norm()
    return ((ours - exact).norm() / spread).item()
