"""Where and in which format a model runs on this machine, and how much of it fits."""

import torch

from engine.config import EngineConfig
from engine.models.config import ModelConfig
from protocol.errors import ConfigError


def choose_device(config: EngineConfig, rank: int = 0) -> torch.device:
    """`rank`: of the processes that share the model; on every host the first GPU is its lowest rank's. Raises ConfigError when a
    GPU is asked for and torch sees none, or fewer than this host's ranks need."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for and torch finds no GPU")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if config.tensor_parallel_size == 1:
        return torch.device("cuda")
    here, found = config.own_followers + 1, torch.cuda.device_count()
    if rank < here and here > found:
        raise ConfigError(f"engine.tensor_parallel_size: {here} processes on this host want a GPU each; torch finds {found}")
    return torch.device("cuda", rank % found)


def choose_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """The configured format, or the checkpoint's where this machine is fast in it."""
    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    if model.checkpoint_dtype == "float32":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16
    is_fast = model.checkpoint_dtype == "bfloat16" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.bfloat16 if is_fast else torch.float32


def keeps_eight_bit(config: EngineConfig, device: torch.device) -> bool:
    """Whether an 8-bit checkpoint's matrices stay as they are: as configured, or where the device converts that format itself."""
    if config.fp8_weights != "auto":
        return config.fp8_weights == "keep"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def count_blocks(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """KV blocks that fit the configured memory; a block spans all of the model's attentions."""
    block_bytes = config.block_size * model.kv_bytes_per_token(dtype.itemsize)
    num_blocks = config.kv_memory_bytes // block_bytes
    if num_blocks < 2:
        raise ConfigError(f"kv_memory_bytes: {config.kv_memory_bytes} hold fewer than 2 blocks of {block_bytes} bytes")
    return num_blocks


def choose_max_model_len(config: EngineConfig, model: ModelConfig, num_blocks: int) -> int:
    """Longest prompt plus answer: what is configured, else what the model was trained for; never more than the pool holds.

    Raises ConfigError when more is asked for than the model can do.
    """
    trained = model.max_position_embeddings
    wanted = config.max_model_len or trained
    if wanted > trained:
        raise ConfigError(f"max_model_len: {wanted} is more than the {trained} positions that the model supports")
    return min(wanted, num_blocks * config.block_size)
