"""How much memory a model's weights take: summed over what it holds, loaded or only described."""

from collections.abc import Iterator
from typing import Any

import torch

from engine.config import EngineConfig
from engine.models.blueprint import Blueprint
from engine.models.config import ModelConfig
from engine.models.registry import build_model
from engine.split.ranks import Ranks
from engine.split.share import Share

OURS = "engine."
"""Modules whose objects hold weights."""


def held_bytes(model: object) -> int:
    """Of all tensors that hang on `model`, each memory counted once; the same on a device and on the meta device."""
    sizes: dict[int, int] = {}
    for tensor in _tensors(model, set()):
        if tensor.is_mkldnn:  # laid out for one kernel; such a tensor shares its memory with no other
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


def weight_bytes(config: ModelConfig, share: Share, *, eight_bit: bool = False) -> int:
    """What one process of a split would hold of the model, in the checkpoint's number format; with `eight_bit`, in 8 bits all that
    may stay so. On a CPU, which lays matrices out anew, a head that is tied takes its memory once more. Raises ConfigError where
    the model cannot be split like that."""
    settings = EngineConfig(fp8_weights="keep" if eight_bit else "widen", tensor_parallel_size=share.size)
    model = build_model(
        config,
        Blueprint(eight_bit=eight_bit),
        settings,
        dtype=getattr(torch, config.checkpoint_dtype),
        device=torch.device("meta"),
        max_model_len=config.max_position_embeddings,
        ranks=Ranks(share),
    )
    return held_bytes(model)


def _tensors(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from _tensors(each, seen)
    elif type(thing).__module__.startswith(OURS):
        for each in vars(thing).values():
            yield from _tensors(each, seen)
