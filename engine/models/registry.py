"""Which model a Hugging Face folder holds: dispatch by `architectures`, the one thing that every checkpoint says."""

import logging
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.models import llama_config, longcat_config
from engine.models.base import Model
from engine.models.config import ModelConfig, read_json
from engine.models.llama import LlamaModel
from engine.models.llama_config import LlamaConfig, read_llama_config
from engine.models.longcat_config import LongcatConfig, read_longcat_config
from engine.models.longcat_flash import LongcatModel
from engine.models.longcat_weights import has_mtp_head
from engine.models.weights import TensorSource
from engine.native.decoder import why_not
from engine.native.library import load_library
from engine.placement import keeps_eight_bit
from engine.split.ranks import ALONE, Ranks
from protocol.errors import ConfigError

log = logging.getLogger(__name__)

READERS: dict[str, Callable[[Path, dict[str, Any], str], ModelConfig]] = {
    **dict.fromkeys(llama_config.ARCHITECTURES, read_llama_config),
    **dict.fromkeys(longcat_config.ARCHITECTURES, read_longcat_config),
}


def read_model_config(folder: Path) -> ModelConfig:
    """Reads config.json and generation_config.json. Raises ConfigError, one line, for anything unsupported."""
    raw = read_json(folder / "config.json")
    architecture = (raw.get("architectures") or ["(none)"])[0]
    if architecture not in READERS:
        raise ConfigError(f"model: architecture {architecture} is not supported; supported are {', '.join(READERS)}")
    return READERS[architecture](folder, raw, architecture)


def choose_draft_head(shape: ModelConfig, source: TensorSource, config: EngineConfig) -> ModelConfig:
    """`shape` with its head for drafting where `config` wants it and `source` has it. Raises ConfigError where it is wanted for
    sure and is not there."""
    drafting = shape.with_draft_head() if has_mtp_head(source) else None
    if config.speculation == "mtp" and drafting is None:
        raise ConfigError("speculation: mtp needs a model with an MTP head, and the checkpoint has none; ngram needs nothing")
    return drafting if drafting is not None and config.speculation in ("mtp", "auto") else shape


def build_model(
    shape: ModelConfig,
    source: TensorSource,
    config: EngineConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    ranks: Ranks = ALONE,
) -> Model:
    """The model with its weights read, or the part of it that is this process's. Raises ConfigError when the tensors are not those
    that `shape` implies, or `ranks` cannot share them."""
    match shape:
        case LlamaConfig():
            kernels = _native_kernels(config, shape, dtype, device) if ranks.share.is_whole else None
            return LlamaModel(
                shape, source, dtype=dtype, device=device, max_model_len=max_model_len, kernels=kernels, ranks=ranks
            )
        case LongcatConfig():
            keeps = keeps_eight_bit(config, device)
            return LongcatModel(
                shape, source, dtype=dtype, device=device, max_model_len=max_model_len, keeps_eight_bit=keeps, ranks=ranks
            )
        case _:
            raise AssertionError(f"no model for {type(shape).__name__}")


def _native_kernels(config: EngineConfig, shape: LlamaConfig, dtype: torch.dtype, device: torch.device) -> CDLL | None:
    if config.native_kernels == "off":
        return None
    reason = why_not(shape, dtype, device, config.block_size)
    if reason is not None:
        log.info("native kernels are off, torch computes every step: %s", reason)
        return None
    return load_library()
