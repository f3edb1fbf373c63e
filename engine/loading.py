"""A model and its KV pool, as the configuration and this machine want them."""

from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.kv_pool import KVPool
from engine.models.base import Model
from engine.models.checkpoint import Checkpoint, Progress
from engine.models.registry import build_model, choose_draft_head, read_model_config
from engine.placement import choose_device, choose_dtype, choose_max_model_len, count_blocks
from engine.split.ranks import ALONE, Ranks


def load_model(
    folder: Path, config: EngineConfig, progress: Progress | None = None, ranks: Ranks = ALONE
) -> tuple[Model, KVPool, int]:
    """Reads the model from a Hugging Face folder and takes the pool. The int is the longest prompt plus answer, in tokens.

    `ranks`: the processes that share the model; each reads its part alone and takes a pool for the whole KV.
    Raises ConfigError, one line, when it cannot.
    """
    shape = read_model_config(folder)
    device = choose_device(config, ranks.share.rank)
    dtype = choose_dtype(config, shape, device)
    with torch.inference_mode(), Checkpoint(folder, progress) as checkpoint:
        shape = choose_draft_head(shape, checkpoint, config)
        num_blocks = count_blocks(config, shape, dtype)
        max_model_len = choose_max_model_len(config, shape, num_blocks)
        model = build_model(shape, checkpoint, config, dtype=dtype, device=device, max_model_len=max_model_len, ranks=ranks)
    # Outside inference mode: other threads write to it in place without knowing of that mode.
    pool = KVPool(
        num_layers=shape.num_kv_layers,
        num_blocks=num_blocks,
        block_size=config.block_size,
        entry_width=shape.entry_width,
        dtype=dtype,
        device=device,
    )
    return model, pool, max_model_len
