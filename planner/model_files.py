"""A ModelShape from config.json. The engine reads the same file for itself; a test holds both to the same counts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planner.attention_shape import AttentionShape, GroupedAttention, LatentAttention
from planner.known_models import KNOWN_MODELS
from planner.model_shape import ExpertShape, ModelShape
from protocol.errors import ConfigError

Raw = Mapping[str, Any]


def find_model(name_or_folder: str) -> ModelShape:
    """One of the known models by name, or a Hugging Face folder. Raises ConfigError."""
    if name_or_folder in KNOWN_MODELS:
        return shape_of(name_or_folder, KNOWN_MODELS[name_or_folder])
    path = Path(name_or_folder).expanduser() / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(KNOWN_MODELS)
        raise ConfigError(f"model: {path} does not exist, and {name_or_folder} is none of {known}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model: {path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"model: {path} does not hold a JSON object")
    return shape_of(path.parent.name, raw)


def shape_of(name: str, raw: Raw) -> ModelShape:
    """From config.json's content. Raises ConfigError for an architecture that no reader here knows."""
    named = raw.get("architectures") or ["(none)"]
    architecture = str(named[0] if isinstance(named, list) else named)
    if architecture not in READERS:
        raise ConfigError(f"model: architecture {architecture} is not known to the planner; known are {', '.join(READERS)}")
    return READERS[architecture](name, raw)


def _read_longcat(name: str, raw: Raw) -> ModelShape:
    hidden, layers = _number(raw, "hidden_size"), _number(raw, "num_layers")
    real, zero, top_k = _number(raw, "n_routed_experts"), _count(raw, "zero_expert_num"), _number(raw, "moe_topk")
    experts = ExpertShape(
        count=real,
        parameters=3 * hidden * _number(raw, "expert_ffn_hidden_size"),
        chosen=top_k * real / (real + zero),
        router_parameters=hidden * (real + zero),
    )
    return ModelShape(
        name=name,
        hidden=hidden,
        vocabulary=_number(raw, "vocab_size"),
        tied_head=bool(raw.get("tie_word_embeddings")),
        attention=_latent_attention(raw),
        expert_layers=layers,
        dense_layers=0,
        dense_mlp=3 * hidden * _number(raw, "ffn_hidden_size"),
        experts=experts,
        shortcut=True,
        max_context=_number(raw, "max_position_embeddings"),
    )


def _read_deepseek(name: str, raw: Raw) -> ModelShape:
    hidden, layers = _number(raw, "hidden_size"), _number(raw, "num_hidden_layers")
    count = _number(raw, "n_routed_experts")
    experts = ExpertShape(
        count=count,
        parameters=3 * hidden * _number(raw, "moe_intermediate_size"),
        chosen=_number(raw, "num_experts_per_tok"),
        shared=_count(raw, "n_shared_experts"),
        router_parameters=hidden * count,
    )
    dense_layers = _count(raw, "first_k_dense_replace")
    if dense_layers > layers:
        raise ConfigError(
            f"model: config.json's first_k_dense_replace must be at most num_hidden_layers ({layers}), not {dense_layers}"
        )
    return _layered(name, raw, _latent_attention(raw), experts, dense_layers, layers - dense_layers)


def _read_qwen_moe(name: str, raw: Raw) -> ModelShape:
    hidden, count = _number(raw, "hidden_size"), _number(raw, "num_experts")
    experts = ExpertShape(
        count=count,
        parameters=3 * hidden * _number(raw, "moe_intermediate_size"),
        chosen=_number(raw, "num_experts_per_tok"),
        router_parameters=hidden * count,
    )
    return _layered(name, raw, _grouped_attention(raw), experts, 0, _number(raw, "num_hidden_layers"))


def _read_dense(name: str, raw: Raw) -> ModelShape:
    return _layered(name, raw, _grouped_attention(raw), None, _number(raw, "num_hidden_layers"), 0)


def _layered(
    name: str, raw: Raw, attention: AttentionShape, experts: ExpertShape | None, dense_layers: int, expert_layers: int
) -> ModelShape:
    hidden = _number(raw, "hidden_size")
    return ModelShape(
        name=name,
        hidden=hidden,
        vocabulary=_number(raw, "vocab_size"),
        tied_head=bool(raw.get("tie_word_embeddings")),
        attention=attention,
        expert_layers=expert_layers,
        dense_layers=dense_layers,
        dense_mlp=3 * hidden * _number(raw, "intermediate_size") if dense_layers else 0,
        experts=experts,
        shortcut=False,
        max_context=_number(raw, "max_position_embeddings"),
    )


def _latent_attention(raw: Raw) -> LatentAttention:
    return LatentAttention(
        hidden=_number(raw, "hidden_size"),
        heads=_number(raw, "num_attention_heads"),
        query_rank=_count(raw, "q_lora_rank"),
        latent=_number(raw, "kv_lora_rank"),
        unrotated=_number(raw, "qk_nope_head_dim"),
        rotated=_number(raw, "qk_rope_head_dim"),
        value=_number(raw, "v_head_dim"),
    )


def _grouped_attention(raw: Raw) -> GroupedAttention:
    hidden, heads = _number(raw, "hidden_size"), _number(raw, "num_attention_heads")
    return GroupedAttention(
        hidden, heads, _count(raw, "num_key_value_heads") or heads, _count(raw, "head_dim") or hidden // heads
    )


def _number(raw: Raw, name: str) -> int:
    if not (value := _count(raw, name)):
        raise ConfigError(f"model: config.json's {name} must be a positive integer, not {raw.get(name)!r}")
    return value


def _count(raw: Raw, name: str) -> int:
    """0 where it is not said."""
    value = raw.get(name) or 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"model: config.json's {name} must be a positive integer, not {value!r}")
    return value


READERS: dict[str, Callable[[str, Raw], ModelShape]] = {
    **dict.fromkeys(("LongcatFlashForCausalLM", "LongcatCausalLM", "LongcatFlashOmniForCausalLM"), _read_longcat),
    "DeepseekV3ForCausalLM": _read_deepseek,
    "Qwen3MoeForCausalLM": _read_qwen_moe,
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), _read_dense),
}
