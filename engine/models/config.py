"""What a Hugging Face folder says about its model, for the Llama family. Anything we would compute wrongly is refused here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.rope import Rope, read_rope
from protocol.errors import ConfigError

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class ModelConfig:
    """The shapes and constants of one decoder-only model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_head: bool | None
    """None: config.json does not say; tied where the checkpoint has no head."""
    checkpoint_dtype: str
    eos_token_ids: frozenset[int]

    @property
    def entry_width(self) -> int:
        """Values that one layer keeps of one token: K and V heads."""
        return 2 * self.num_kv_heads * self.head_dim


def read_model_config(folder: Path) -> ModelConfig:
    """Reads config.json and generation_config.json. Raises ConfigError, one line, for anything unsupported."""
    raw = _read_json(folder / "config.json")
    architecture = (raw.get("architectures") or ["(none)"])[0]
    if architecture not in SUPPORTED:
        raise ConfigError(f"model: architecture {architecture} is not supported; supported are {', '.join(SUPPORTED)}")
    _refuse_unsupported(raw)
    heads, hidden = _required(raw, "num_attention_heads"), _required(raw, "hidden_size")
    max_positions = raw.get("max_position_embeddings") or 2048
    head_dim = raw.get("head_dim") or (128 if architecture == "Qwen3ForCausalLM" else hidden // heads)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=_required(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_required(raw, "intermediate_size"),
        num_layers=_required(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=read_rope(raw, head_dim, max_positions),
        max_position_embeddings=_without_sliding_window(raw, architecture, max_positions),
        qkv_bias=architecture == "Qwen2ForCausalLM" or bool(raw.get("attention_bias")),
        output_bias=architecture != "Qwen2ForCausalLM" and bool(raw.get("attention_bias")),
        mlp_bias=bool(raw.get("mlp_bias")),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tied_head=raw.get("tie_word_embeddings"),
        checkpoint_dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
        eos_token_ids=_eos_token_ids(folder, raw),
    )
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(f"model: {config.num_heads} attention heads cannot share {config.num_kv_heads} KV heads")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"model: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"model: {path} does not hold a JSON object")
    return value


def _required(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"model: config.json's {name} must be a positive integer, not {value!r}")
    return value


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(f"model: quantized checkpoints are not supported (quantization_config: {method})")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"model: hidden_act {activation} is not supported, only silu")


def _without_sliding_window(raw: dict[str, Any], architecture: str, max_positions: int) -> int:
    """Positions up to which full attention is what the model does: inside the window a sliding layer sees everything."""
    window = raw.get("sliding_window")
    if architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        windowed = any(kind == "sliding_attention" for kind in raw.get("layer_types") or [])
        window = window if raw.get("use_sliding_window") or windowed else None
    if architecture == "LlamaForCausalLM" or not window:
        return max_positions
    return min(int(window), max_positions)


def _eos_token_ids(folder: Path, raw: dict[str, Any]) -> frozenset[int]:
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.exists() else {}
    value = generation.get("eos_token_id", raw.get("eos_token_id"))
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
