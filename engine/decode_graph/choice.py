"""Whether an engine's decode steps are replayed."""

import logging

import torch

from engine.attention.base import AttentionBackend
from engine.attention.over_tables import over_block_tables
from engine.config import EngineConfig
from engine.decode_graph.graphs import StepGraphs
from engine.decode_graph.shape import StepShapes, sizes_up_to
from engine.decode_graph.step import StepParts
from engine.kv_pool import KVPool
from engine.models.base import Model
from engine.speculation.mtp import MtpDrafter

logger = logging.getLogger(__name__)

GROUPED_PRODUCT = ((9, 0), (10, 0))
"""Compute capabilities on which torch 2.13 has a grouped product of bfloat16 that waits for nothing (engine/models/moe.py)."""


def make_step_graphs(
    config: EngineConfig, model: Model, pool: KVPool, attention: AttentionBackend, max_model_len: int
) -> StepGraphs | None:
    """Captured, on a GPU where `config` lets them be and nothing is in the way; else None, and the log says why.

    `attention`: the model's, over `pool`, of which nobody holds a block yet.
    """
    if config.cuda_graphs == "off" or model.device.type != "cuda":
        return None
    obstacle = what_prevents(config, model, pool.dtype, torch.cuda.get_device_capability(model.device))
    if obstacle is None:
        graphs = step_graphs(config, model, pool, attention, max_model_len)
        try:
            graphs.capture()
            return graphs
        except (RuntimeError, ImportError) as error:
            obstacle = f"{type(error).__name__}: {error}"
    logger.warning("decode steps are not captured as CUDA graphs, each is launched operation by operation: %s", obstacle)
    return None


def step_graphs(
    config: EngineConfig, model: Model, pool: KVPool, attention: AttentionBackend, max_model_len: int
) -> StepGraphs:
    """Not captured: then a replay is a call, on any device."""
    drafter = None
    paged = over_block_tables(attention, pool)
    if model.draft_head is not None:
        drafter = MtpDrafter(model.draft_head, pool, paged)
    sizes = config.cuda_graph_sizes or sizes_up_to(config.max_sequences)
    draft_tokens = 1 if drafter is not None else config.draft_tokens if config.speculation == "ngram" else 0
    shapes = StepShapes(sizes, draft_tokens, model.config.vocab_size)
    return StepGraphs(StepParts(model, pool, paged, drafter), shapes, max_model_len)


def what_prevents(config: EngineConfig, model: Model, dtype: torch.dtype, capability: tuple[int, int]) -> str | None:
    """Why steps of `model` cannot be captured on a GPU of `capability`, as far as that is known beforehand."""
    if config.tensor_parallel_size > 1:
        return "several processes share the model and lay out each step together"
    if model.config.history:
        return "the model embeds a token by those before it, which the host lays out for each step"
    if model.expert_tally is not None and (dtype != torch.bfloat16 or capability not in GROUPED_PRODUCT):
        return (
            f"torch's grouped product of experts waits for the device in {str(dtype).removeprefix('torch.')} on compute "
            f"capability {capability[0]}.{capability[1]}; it does not in bfloat16 on 9.0 and 10.0"
        )
    return None
