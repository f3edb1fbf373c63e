"""What `serval models inspect` says of a model, from its config.json alone."""

from collections.abc import Iterator
from pathlib import Path

import torch

from engine.models.blueprint import Parameters, count_draft_head, count_parameters
from engine.models.held import weight_bytes
from engine.models.longcat_config import LongcatConfig
from engine.models.registry import read_model_config
from engine.split.share import Share


def model_report(folder: Path, processes: int, memory_gib: float | None = None) -> Iterator[tuple[str, str]]:
    """Names and values, in the checkpoint's number format. `processes`: that share the model; `memory_gib`: of each of them.
    Raises ConfigError for a model that we cannot serve, or not split like that."""
    config = read_model_config(folder)
    value_bytes = getattr(torch, config.checkpoint_dtype).itemsize
    parameters = count_parameters(config)
    kv_bytes = config.kv_bytes_per_token(value_bytes)
    positions = config.max_position_embeddings
    yield "architecture", config.architecture
    yield "number format", config.checkpoint_dtype
    yield "parameters", _count(parameters.total)
    yield "activated per token", _activated(parameters)
    yield "KV per token", f"{kv_bytes:,} bytes ({config.num_kv_layers} layers of {config.entry_width} values)"
    if (drafting := config.with_draft_head()) is not None:
        shared, own = map(_count, count_draft_head(config))
        yield (
            "with the MTP head",
            f"{drafting.kv_bytes_per_token(value_bytes):,} bytes per token ({drafting.num_kv_layers} layers)",
        )
        yield "MTP head's parameters", f"{shared}, or {own} with an embedding of its own"
    yield "KV of a full context", f"{_size(kv_bytes * positions)} ({positions:,} tokens)"
    share = Share(0, processes)
    weights_bytes = weight_bytes(config, share)
    yield "weights of a process", f"{_size(weights_bytes)} (tensor_parallel_size {processes})"
    if isinstance(config, LongcatConfig) and config.weight_block is not None:
        weights_bytes = weight_bytes(config, share, eight_bit=True)
        yield (
            "the same in 8 bits",
            f"{_size(weights_bytes)} (all that may stay so; layers left in {config.checkpoint_dtype} add to it)",
        )
    if drafting is not None:
        yield "MTP head of a process", _size(weight_bytes(drafting, share) - weight_bytes(config, share))
    if memory_gib is not None:
        room_bytes = int(memory_gib * (1 << 30)) - weights_bytes
        fits = f"{_size(room_bytes)} ({room_bytes // kv_bytes:,} tokens)" if room_bytes > 0 else "none: the weights do not fit"
        yield "room for KV at most", f"{fits} of {memory_gib:g} GiB"


def _activated(parameters: Parameters) -> str:
    if parameters.activated_min == parameters.activated_max:
        return _count(parameters.activated_mean)
    least, mean, most = map(_count, (parameters.activated_min, parameters.activated_mean, parameters.activated_max))
    return f"{least} to {most}, {mean} on average"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.2f} GiB" if size_bytes >= 1 << 30 else f"{size_bytes / (1 << 20):.2f} MiB"


def _count(number: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return str(number)
