"""What config.json says about a model of the Llama family. Anything we would compute wrongly is refused here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.config import ModelConfig, checkpoint_dtype, eos_token_ids, refuse_unsupported, required
from engine.models.rope import read_rope
from protocol.errors import ConfigError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Grouped-query attention and one dense MLP per layer."""

    intermediate_size: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_head: bool | None
    """None: config.json does not say; tied where the checkpoint has no head."""

    @property
    def num_kv_layers(self) -> int:
        return self.num_layers

    @property
    def entry_width(self) -> int:
        """K and V heads."""
        return 2 * self.num_kv_heads * self.head_dim


def read_llama_config(folder: Path, raw: dict[str, Any], architecture: str) -> LlamaConfig:
    """From config.json's content. Raises ConfigError, one line, for anything unsupported."""
    refuse_unsupported(raw)
    heads, hidden = required(raw, "num_attention_heads"), required(raw, "hidden_size")
    max_positions = raw.get("max_position_embeddings") or 2048
    head_dim = raw.get("head_dim") or (128 if architecture == "Qwen3ForCausalLM" else hidden // heads)
    config = LlamaConfig(
        architecture=architecture,
        vocab_size=required(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=required(raw, "intermediate_size"),
        num_layers=required(raw, "num_hidden_layers"),
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
        checkpoint_dtype=checkpoint_dtype(raw),
        eos_token_ids=eos_token_ids(folder, raw),
    )
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(f"model: {config.num_heads} attention heads cannot share {config.num_kv_heads} KV heads")
    return config


def _without_sliding_window(raw: dict[str, Any], architecture: str, max_positions: int) -> int:
    """Positions up to which full attention is what the model does: inside the window a sliding layer sees everything."""
    window = raw.get("sliding_window")
    if architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        windowed = any(kind == "sliding_attention" for kind in raw.get("layer_types") or [])
        window = window if raw.get("use_sliding_window") or windowed else None
    if architecture == "LlamaForCausalLM" or not window:
        return max_positions
    return min(int(window), max_positions)
