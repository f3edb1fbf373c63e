"""A LongCat-Flash checkpoint's tensors as the model computes with them, layer by layer."""

import logging
from dataclasses import dataclass

import torch

from engine.attention.mla import LatentProjections
from engine.eight_bit import EightBitLinear, EightBitMatrix, Matrix
from engine.linear import Linear, Product, can_pack
from engine.models.expert_tally import ExpertTally
from engine.models.longcat_config import LongcatConfig
from engine.models.longcat_names import (
    HALVES,
    MTP_EMBEDDING,
    MTP_LAYER,
    MTP_PREFIX,
    NGRAM_PREFIX,
    mtp_tensor_names,
    tensor_names,
)
from engine.models.mla import Mla, MlaParts, halves_from_pairs
from engine.models.mlp import SwiGlu
from engine.models.moe import ExpertWeights, MixtureOfExperts, RouterWeights
from engine.models.ngram_embedding import NgramEmbedding
from engine.models.norm import RmsNorm
from engine.models.weights import SCALE_SUFFIX, TensorSource, WeightReader

log = logging.getLogger(__name__)


def has_mtp_head(source: TensorSource) -> bool:
    """Whether there is any tensor of it; what it lacks is said when it is read."""
    return any(name in source for name in mtp_tensor_names())


@dataclass(frozen=True)
class LongcatLayer:
    """One layer's parts; of each pair, the first is before the shortcut's branch and the second after it."""

    attentions: list[Mla]
    mlps: list[SwiGlu]
    input_norms: list[RmsNorm]
    post_attention_norms: list[RmsNorm]
    experts: MixtureOfExperts


@dataclass(frozen=True)
class MtpLayer:
    """The MTP head's parts: one latent attention and one dense MLP over a token joined with the hidden state before it."""

    embedding: torch.Tensor
    token_norm: RmsNorm
    hidden_norm: RmsNorm
    joint: Linear
    """Of a token's normalised embedding and a normalised hidden state, side by side, to one hidden state."""
    input_norm: RmsNorm
    attention: Mla
    post_attention_norm: RmsNorm
    mlp: SwiGlu
    norm: RmsNorm
    """Before the product that makes logits, which is the model's own."""


class LongcatReader:
    """Checks the tensors' names at once and reads each once. Needs memory for little more than the model."""

    def __init__(self, config: LongcatConfig, weights: WeightReader, tally: ExpertTally) -> None:
        """`tally` is told of the experts' work. Raises ConfigError when tensors lack or are not expected; where the MTP head is
        off, its own may be there or not."""
        self._config = config
        self._weights = weights
        self._tally = tally
        self._packed = can_pack(weights.dtype, weights.device)
        names, head = set(tensor_names(config)), set(mtp_tensor_names())
        if config.with_mtp:
            names |= {name for name in head if name != MTP_EMBEDDING or name in weights.source}
        elif has_mtp_head(weights.source):
            log.info("the checkpoint's MTP head (%s*) is left out: nothing here drafts with it", MTP_PREFIX)
        weights.expect(names, lambda name: name.removesuffix(SCALE_SUFFIX) in head - names)

    def embedding(self) -> torch.Tensor:
        return self._weights.tensor("model.embed_tokens.weight", self._config.vocab_size, self._config.hidden_size)

    def ngrams(self) -> NgramEmbedding | None:
        shape = self._config.ngrams
        if shape is None:
            return None
        tables = self._weights.empty(sum(shape.rows), shape.width)
        projections = self._weights.empty(self._config.hidden_size, len(shape.rows) * shape.width)
        for index, table in enumerate(tables.split_with_sizes(shape.rows)):
            self._weights.read_into(table, f"{NGRAM_PREFIX}embedders.{index}.weight")
        for index, projection in enumerate(projections.split_with_sizes([shape.width] * len(shape.rows), dim=1)):
            self._weights.read_into(projection, f"{NGRAM_PREFIX}post_projs.{index}.weight")
        return NgramEmbedding(shape, tables, self._linear(projections))

    def head(self) -> tuple[RmsNorm, Linear]:
        """The final norm and the product that makes logits."""
        weight = self._weights.tensor("lm_head.weight", self._config.vocab_size, self._config.hidden_size)
        return self._norm("model.norm"), Linear(weight, packed=self._packed)

    def layer(self, index: int) -> LongcatLayer:
        prefix = f"model.layers.{index}"
        return LongcatLayer(
            attentions=[self._attention(f"{prefix}.self_attn.{half}") for half in HALVES],
            mlps=[self._mlp(f"{prefix}.mlps.{half}") for half in HALVES],
            input_norms=[self._norm(f"{prefix}.input_layernorm.{half}") for half in HALVES],
            post_attention_norms=[self._norm(f"{prefix}.post_attention_layernorm.{half}") for half in HALVES],
            experts=self._experts(f"{prefix}.mlp"),
        )

    def mtp_layer(self, embedding: torch.Tensor) -> MtpLayer:
        """`embedding`: the model's, for a head that has none of its own."""
        hidden = self._config.hidden_size
        if MTP_EMBEDDING in self._weights.source:
            embedding = self._weights.tensor(MTP_EMBEDDING, *embedding.shape)
        return MtpLayer(
            embedding=embedding,
            token_norm=self._norm(f"{MTP_LAYER}.enorm.m"),
            hidden_norm=self._norm(f"{MTP_LAYER}.hnorm.m"),
            joint=self._linear(self._weights.tensor(f"{MTP_LAYER}.eh_proj.weight", hidden, 2 * hidden)),
            input_norm=self._norm(f"{MTP_LAYER}.input_layernorm"),
            attention=self._attention(f"{MTP_LAYER}.self_attn"),
            post_attention_norm=self._norm(f"{MTP_LAYER}.post_attention_layernorm"),
            mlp=self._mlp(f"{MTP_LAYER}.transformer_layer.mlp"),
            norm=self._norm(f"{MTP_PREFIX}norm"),
        )

    def _norm(self, name: str, width: int | None = None, scale: float = 1.0) -> RmsNorm:
        """With `scale` in its weight."""
        weight = self._weights.tensor(f"{name}.weight", width or self._config.hidden_size, dtype=torch.float32)
        return RmsNorm((weight * scale).to(self._weights.dtype), self._config.rms_norm_eps)

    def _linear(self, weight: torch.Tensor) -> Linear:
        return Linear(weight, packed=self._packed)

    def _product(self, weight: Matrix) -> Product:
        return EightBitLinear(weight) if isinstance(weight, EightBitMatrix) else self._linear(weight)

    def _mlp(self, name: str) -> SwiGlu:
        hidden, inner = self._config.hidden_size, self._config.ffn_hidden_size
        gate_up = self._weights.matrix((f"{name}.gate_proj.weight", f"{name}.up_proj.weight"), (inner, inner), hidden)
        return SwiGlu(
            self._product(gate_up), self._product(self._weights.matrix((f"{name}.down_proj.weight",), (hidden,), inner))
        )

    def _attention(self, name: str) -> Mla:
        config, read = self._config, self._weights.tensor
        heads, hidden, rotated = config.num_heads, config.hidden_size, config.qk_rope_head_dim
        nope, latent, query_rank = config.qk_nope_head_dim, config.kv_lora_rank, config.q_lora_rank
        key_down = read(f"{name}.kv_a_proj_with_mqa.weight", config.entry_width, hidden)
        key_down = halves_from_pairs(key_down.unsqueeze(0), rotated).squeeze(0)
        query_up = read(f"{name}.q_b_proj.weight", heads * (nope + rotated), query_rank)
        query_up = halves_from_pairs(query_up.view(heads, nope + rotated, query_rank), rotated).flatten(0, 1)
        key_value_up = read(f"{name}.kv_b_proj.weight", heads * (nope + config.v_head_dim), latent)
        key_up, value_up = key_value_up.view(heads, -1, latent).split_with_sizes((nope, config.v_head_dim), dim=1)
        parts = MlaParts(
            down=self._linear(torch.cat((read(f"{name}.q_a_proj.weight", query_rank, hidden), key_down))),
            query_norm=self._norm(f"{name}.q_a_layernorm", query_rank, config.query_scale),
            query_up=self._linear(query_up),
            latent_norm=self._norm(f"{name}.kv_a_layernorm", latent, config.latent_scale),
            output=self._product(self._weights.matrix((f"{name}.o_proj.weight",), (hidden,), heads * config.v_head_dim)),
            projections=LatentProjections(key_up.contiguous(), value_up.transpose(1, 2).contiguous()),
        )
        return Mla(parts, query_rank=query_rank, latent=latent, nope=nope)

    def _experts(self, name: str) -> MixtureOfExperts:
        config, read = self._config, self._weights.tensor
        count, hidden, inner = config.n_routed_experts, config.hidden_size, config.expert_ffn_hidden_size
        everyone = count + config.zero_expert_num
        router = RouterWeights(
            classifier=read(f"{name}.router.classifier.weight", everyone, hidden, dtype=torch.float32),
            correction_bias=read(f"{name}.router.e_score_correction_bias", everyone, dtype=torch.float32),
            topk=config.moe_topk,
            scaling_factor=config.routed_scaling_factor,
        )
        gates_and_ups = [tuple(f"{name}.experts.{each}.{kind}_proj.weight" for kind in ("gate", "up")) for each in range(count)]
        downs = [(f"{name}.experts.{each}.down_proj.weight",) for each in range(count)]
        experts = ExpertWeights(
            gate_up=self._weights.matrices(gates_and_ups, (inner, inner), hidden),
            down=self._weights.matrices(downs, (hidden,), inner),
        )
        return MixtureOfExperts(router, experts, self._tally)
