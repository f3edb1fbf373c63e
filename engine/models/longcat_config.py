"""What config.json says about a LongCat-Flash model. Anything we would compute wrongly is refused here."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.models.config import ModelConfig, checkpoint_dtype, eos_token_ids, refuse_unsupported, required
from engine.models.ngram_embedding import NgramShape, read_ngram_shape
from engine.models.rope import Rope, read_rope
from protocol.errors import ConfigError

WITH_NGRAMS = "LongcatFlashNgramForCausalLM"
"""LongCat-Flash-Lite."""
END_TOKEN_ID = 2
"""`</longcat_s>`, which ends an answer: of a checkpoint that does not say so."""
ARCHITECTURES = ("LongcatFlashForCausalLM", "LongcatCausalLM", "LongcatFlashOmniForCausalLM", WITH_NGRAMS)
"""The second is the same under the name that some checkpoints give it; the third is Omni's text part, whose encoders and decoders
lie in files of their own that are not read."""


@dataclass(frozen=True)
class LongcatConfig(ModelConfig):
    """Two latent attentions, two dense MLPs and a mixture of experts per layer; `num_layers` counts those layers."""

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    ffn_hidden_size: int
    expert_ffn_hidden_size: int
    n_routed_experts: int
    zero_expert_num: int
    """Experts that give back what they get."""
    moe_topk: int
    routed_scaling_factor: float
    query_scale: float
    """On the whole query; and `latent_scale` on the normalised latent, not on the rotated part of the key."""
    latent_scale: float
    softmax_scale: float
    weight_block: tuple[int, int] | None
    """Rows and columns that share a scale, where the checkpoint's matrices are 8-bit (some may be left as they were)."""
    ngrams: NgramShape | None
    """Where n-grams have embeddings too."""
    with_mtp: bool = False
    """Whether the MTP head is computed too. config.json does not say whether there is one; the checkpoint's tensors do."""

    @property
    def num_kv_layers(self) -> int:
        return 2 * self.num_layers + self.num_draft_layers

    @property
    def num_draft_layers(self) -> int:
        return int(self.with_mtp)

    def with_draft_head(self) -> "LongcatConfig":
        return replace(self, with_mtp=True)

    @property
    def history(self) -> int:
        return 0 if self.ngrams is None else self.ngrams.history

    @property
    def entry_width(self) -> int:
        """The latent, normalised and scaled, then the rotated part of the key: one for all heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def mean_real_experts(self) -> float:
        """Of a token's `moe_topk`, if the router treats all experts alike."""
        return self.moe_topk * self.n_routed_experts / (self.n_routed_experts + self.zero_expert_num)


def read_longcat_config(folder: Path, raw: dict[str, Any], architecture: str) -> LongcatConfig:
    """From config.json's content, the released one or transformers'. Raises ConfigError, one line, for anything unsupported."""
    refuse_unsupported({name: value for name, value in raw.items() if name != "quantization_config"})
    _refuse_unsupported_parts(raw, architecture)
    hidden, q_rank, kv_rank = (required(raw, name) for name in ("hidden_size", "q_lora_rank", "kv_lora_rank"))
    nope, rotated = required(raw, "qk_nope_head_dim"), required(raw, "qk_rope_head_dim")
    max_positions = required(raw, "max_position_embeddings")
    rope = read_rope(raw, rotated, max_positions)
    config = LongcatConfig(
        architecture=architecture,
        vocab_size=required(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=required(raw, "num_layers"),
        num_heads=required(raw, "num_attention_heads"),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
        rope=rope,
        max_position_embeddings=max_positions,
        checkpoint_dtype=checkpoint_dtype(raw, default="bfloat16"),
        eos_token_ids=eos_token_ids(folder, raw) or frozenset({END_TOKEN_ID}),
        q_lora_rank=q_rank,
        kv_lora_rank=kv_rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rotated,
        v_head_dim=required(raw, "v_head_dim"),
        ffn_hidden_size=required(raw, "ffn_hidden_size"),
        expert_ffn_hidden_size=required(raw, "expert_ffn_hidden_size"),
        n_routed_experts=required(raw, "n_routed_experts"),
        zero_expert_num=raw.get("zero_expert_num") or 0,
        moe_topk=required(raw, "moe_topk"),
        routed_scaling_factor=raw.get("routed_scaling_factor", 1.0),
        query_scale=math.sqrt(hidden / q_rank) if raw.get("mla_scale_q_lora", True) else 1.0,
        latent_scale=math.sqrt(hidden / kv_rank) if raw.get("mla_scale_kv_lora", True) else 1.0,
        softmax_scale=(nope + rotated) ** -0.5 * _yarn_scale(rope),
        weight_block=_weight_block(raw.get("quantization_config")),
        ngrams=read_ngram_shape(raw) if architecture == WITH_NGRAMS else None,
    )
    if config.moe_topk > config.n_routed_experts + config.zero_expert_num:
        raise ConfigError(f"model: config.json's moe_topk {config.moe_topk} is more than there are experts")
    if rotated % 2:
        raise ConfigError(f"model: config.json's qk_rope_head_dim must be even, not {rotated}")
    return config


def _refuse_unsupported_parts(raw: dict[str, Any], architecture: str) -> None:
    unsupported = {
        "attention_bias": raw.get("attention_bias"),
        "router_bias": raw.get("router_bias"),
        "norm_topk_prob": raw.get("norm_topk_prob"),
        "tie_word_embeddings": raw.get("tie_word_embeddings"),
        "linear_method": raw.get("linear_method"),
        "oe_neighbor_num": raw.get("oe_neighbor_num"),
        "ngram_exclude_sp_token": raw.get("ngram_exclude_sp_token"),
        "ngram_fix_normalize_factor": raw.get("ngram_fix_normalize_factor"),
        "ngram_vocab_size_ratio": architecture != WITH_NGRAMS and raw.get("ngram_vocab_size_ratio"),
    }
    if wrong := [name for name, value in unsupported.items() if value]:
        raise ConfigError(f"model: config.json's {', '.join(wrong)} is not supported for {architecture}")
    if (attention := raw.get("attention_method") or "MLA") != "MLA":
        raise ConfigError(f"model: config.json's attention_method {attention} is not supported, only MLA")
    kind = raw.get("zero_expert_type", "identity")
    if kind != "identity":
        raise ConfigError(f"model: config.json's zero_expert_type {kind} is not supported, only identity")


def _weight_block(quantization: dict[str, Any] | None) -> tuple[int, int] | None:
    """FP8 with one scale per block of a matrix, which is how LongCat-Flash-Chat-FP8 was released; nothing else."""
    if not quantization:
        return None
    method = quantization.get("quant_method")
    block: Any = quantization.get("weight_block_size")
    match block:
        case [int(rows), int(columns)] if method == "fp8" and min(rows, columns) > 0:
            return rows, columns
    told = f"{method} with weight_block_size {block}"
    raise ConfigError(f"model: quantization_config: {told} is not supported, only fp8 with blocks")


def _yarn_scale(rope: Rope) -> float:
    """YaRN models that set mscale_all_dim scale their scores by its square (as DeepSeek-V3 and transformers do)."""
    coefficient = rope.number("mscale_all_dim", 0.0)
    if rope.rule == "default" or not coefficient or rope.number("factor") <= 1:
        return 1.0
    return (0.1 * coefficient * math.log(rope.number("factor")) + 1.0) ** 2
