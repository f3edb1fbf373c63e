"""The tensors of a LongCat-Flash checkpoint, by the names under which they were released."""

from engine.models.longcat_config import LongcatConfig

NGRAM_PREFIX = "model.ngram_embeddings."
MTP_PREFIX = "model.mtp."
MTP_LAYER = f"{MTP_PREFIX}layers.0"
ATTENTION = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
HALVES = (0, 1)
"""Each layer has two attentions, dense MLPs and pairs of norms."""


def tensor_names(config: LongcatConfig) -> list[str]:
    """Every tensor of the model proper."""
    layers = [f"model.layers.{index}.{name}" for index in range(config.num_layers) for name in _layer(config)]
    return ["model.embed_tokens.weight", *ngram_names(config), *layers, "model.norm.weight", "lm_head.weight"]


def ngram_names(config: LongcatConfig) -> list[str]:
    """Tables and projections of n-grams, where there are any."""
    tables = range(len(config.ngrams.rows)) if config.ngrams is not None else ()
    return [f"{NGRAM_PREFIX}{kind}.{table}.weight" for kind in ("embedders", "post_projs") for table in tables]


MTP_EMBEDDING = f"{MTP_PREFIX}embed_tokens.weight"
"""A checkpoint may leave it out: then the head looks its tokens up in the model's own table."""


def mtp_tensor_names() -> list[str]:
    """Those of the head that drafts a second token, which has one layer."""
    layer = ["enorm.m.weight", "hnorm.m.weight", "eh_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"]
    layer += [f"self_attn.{name}.weight" for name in ATTENTION] + [f"transformer_layer.mlp.{name}.weight" for name in MLP]
    return [MTP_EMBEDDING, f"{MTP_PREFIX}norm.weight", *(f"{MTP_LAYER}.{name}" for name in layer)]


def expert_names(config: LongcatConfig, experts: range) -> list[str]:
    """Those of `experts`, in all layers."""
    kinds = [f"mlp.experts.{expert}.{name}.weight" for expert in experts for name in MLP]
    return [f"model.layers.{index}.{kind}" for index in range(config.num_layers) for kind in kinds]


def _layer(config: LongcatConfig) -> list[str]:
    names = [f"{norm}.{half}.weight" for norm in ("input_layernorm", "post_attention_layernorm") for half in HALVES]
    names += [f"self_attn.{half}.{name}.weight" for half in HALVES for name in ATTENTION]
    names += [f"mlps.{half}.{name}.weight" for half in HALVES for name in MLP]
    names += [f"mlp.experts.{expert}.{name}.weight" for expert in range(config.n_routed_experts) for name in MLP]
    return [*names, "mlp.router.classifier.weight", "mlp.router.e_score_correction_bias"]
