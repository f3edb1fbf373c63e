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
    expert_names,
    mtp_tensor_names,
    tensor_names,
)
from engine.models.mla import Mla, MlaParts, halves_from_pairs
from engine.models.mlp import SwiGlu
from engine.models.moe import ExpertWeights, MixtureOfExperts, RouterWeights
from engine.models.ngram_embedding import NgramEmbedding
from engine.models.norm import RmsNorm
from engine.models.vocabulary import Embedding, Head, read_table
from engine.models.weights import SCALE_SUFFIX, TensorSource, WeightReader
from engine.split.ranks import Ranks

log = logging.getLogger(__name__)


def has_mtp_head(source: TensorSource) -> bool:
    """Whether there is any tensor of it; what it lacks is said when it is read."""
    return any(name in source for name in mtp_tensor_names())


@dataclass(frozen=True)
class LongcatLayer:
    """One layer's parts; of each pair, the first is before the shortcut's branch and the second after it.

    Of a split model, attentions and the first MLP give what all processes add up to; the second MLP and the experts give this
    process's part, to be added up together.
    """

    attentions: list[Mla]
    mlps: list[SwiGlu]
    input_norms: list[RmsNorm]
    post_attention_norms: list[RmsNorm]
    experts: MixtureOfExperts


@dataclass(frozen=True)
class MtpLayer:
    """The MTP head's parts: one latent attention and one dense MLP over a token joined with the hidden state before it."""

    embedding: Embedding
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
    """Checks the tensors' names at once and reads each once. Needs memory for little more than this process's share."""

    def __init__(self, config: LongcatConfig, weights: WeightReader, tally: ExpertTally, ranks: Ranks) -> None:
        """`tally` is told of the experts' work. Raises ConfigError when tensors lack or are not expected; where the MTP head is
        off, its own may be there or not."""
        self._config = config
        self._weights = weights
        self._tally = tally
        self._ranks = ranks
        share = weights.share
        self._own_heads = share.of(config.num_heads, "attention heads")
        self._own_experts = share.of(config.n_routed_experts, "experts")
        self._packed = can_pack(weights.dtype, weights.device)
        names, head = set(tensor_names(config)), set(mtp_tensor_names())
        if config.with_mtp:
            names |= {name for name in head if name != MTP_EMBEDDING or name in weights.source}
        elif has_mtp_head(weights.source):
            log.info("the checkpoint's MTP head (%s*) is left out: nothing here drafts with it", MTP_PREFIX)
        own = set(expert_names(config, self._own_experts))
        elsewhere = {name for name in expert_names(config, range(config.n_routed_experts)) if name not in own}
        weights.expect(names, lambda name: name.removesuffix(SCALE_SUFFIX) in head - names, elsewhere)

    def embedding(self) -> Embedding:
        return Embedding(self._table("model.embed_tokens.weight"), self._ranks)

    def ngrams(self) -> NgramEmbedding | None:
        shape = self._config.ngrams
        if shape is None:
            return None
        own = self._weights.share.columns(shape.width, "values of an n-gram's embedding")
        width = shape.width if own is None else own.count
        tables = self._weights.empty(sum(shape.rows), width)
        projections = self._weights.empty(self._config.hidden_size, len(shape.rows) * width)
        for index, table in enumerate(tables.split_with_sizes(shape.rows)):
            self._weights.read_into(table, f"{NGRAM_PREFIX}embedders.{index}.weight", own)
        for index, projection in enumerate(projections.split_with_sizes([width] * len(shape.rows), dim=1)):
            self._weights.read_into(projection, f"{NGRAM_PREFIX}post_projs.{index}.weight", own)
        return NgramEmbedding(shape, tables, self._linear(projections))

    def head(self) -> tuple[RmsNorm, Head]:
        """The final norm and the product that makes logits."""
        product = self._linear(self._table("lm_head.weight"))
        return self._norm("model.norm"), Head(product, self._ranks, self._config.vocab_size)

    def layer(self, index: int) -> LongcatLayer:
        prefix = f"model.layers.{index}"
        return LongcatLayer(
            attentions=[self._attention(f"{prefix}.self_attn.{half}") for half in HALVES],
            mlps=[self._mlp(f"{prefix}.mlps.{half}", summed=half == 0) for half in HALVES],
            input_norms=[self._norm(f"{prefix}.input_layernorm.{half}") for half in HALVES],
            post_attention_norms=[self._norm(f"{prefix}.post_attention_layernorm.{half}") for half in HALVES],
            experts=self._experts(f"{prefix}.mlp"),
        )

    def mtp_layer(self, embedding: Embedding) -> MtpLayer:
        """`embedding`: the model's, for a head that has none of its own."""
        hidden = self._config.hidden_size
        if MTP_EMBEDDING in self._weights.source:
            embedding = Embedding(self._table(MTP_EMBEDDING), self._ranks)
        return MtpLayer(
            embedding=embedding,
            token_norm=self._norm(f"{MTP_LAYER}.enorm.m"),
            hidden_norm=self._norm(f"{MTP_LAYER}.hnorm.m"),
            joint=self._linear(self._weights.tensor(f"{MTP_LAYER}.eh_proj.weight", hidden, 2 * hidden)),
            input_norm=self._norm(f"{MTP_LAYER}.input_layernorm"),
            attention=self._attention(f"{MTP_LAYER}.self_attn"),
            post_attention_norm=self._norm(f"{MTP_LAYER}.post_attention_layernorm"),
            mlp=self._mlp(f"{MTP_LAYER}.transformer_layer.mlp", summed=True),
            norm=self._norm(f"{MTP_PREFIX}norm"),
        )

    def _norm(self, name: str, width: int | None = None, scale: float = 1.0) -> RmsNorm:
        """With `scale` in its weight."""
        weight = self._weights.tensor(f"{name}.weight", width or self._config.hidden_size, dtype=torch.float32)
        return RmsNorm((weight * scale).to(self._weights.dtype), self._config.rms_norm_eps)

    def _table(self, name: str) -> torch.Tensor:
        return read_table(self._weights, name, self._config.vocab_size, self._config.hidden_size)

    def _linear(self, weight: torch.Tensor) -> Linear:
        return Linear(weight, packed=self._packed)

    def _product(self, weight: Matrix) -> Product:
        return EightBitLinear(weight) if isinstance(weight, EightBitMatrix) else self._linear(weight)

    def _mlp(self, name: str, *, summed: bool) -> SwiGlu:
        """`summed`: over all processes; otherwise each gives its part."""
        hidden, inner, share = self._config.hidden_size, self._config.ffn_hidden_size, self._weights.share
        names, what = (f"{name}.gate_proj.weight", f"{name}.up_proj.weight"), "inner values of an MLP"
        gate_up = self._weights.matrix(names, (inner, inner), hidden, share.rows(inner, what))
        down_name = (f"{name}.down_proj.weight",)
        down = self._product(self._weights.matrix(down_name, (hidden,), inner, share.columns(inner, what)))
        return SwiGlu(self._product(gate_up), self._ranks.summed(down) if summed else down)

    def _attention(self, name: str) -> Mla:
        config, read = self._config, self._weights.tensor
        hidden, rotated = config.hidden_size, config.qk_rope_head_dim
        nope, latent, query_rank = config.qk_nope_head_dim, config.kv_lora_rank, config.q_lora_rank
        key_down = read(f"{name}.kv_a_proj_with_mqa.weight", config.entry_width, hidden)
        key_down = halves_from_pairs(key_down.unsqueeze(0), rotated).squeeze(0)
        query_up = self._of_heads(f"{name}.q_b_proj.weight", nope + rotated, query_rank)
        query_up = halves_from_pairs(query_up, rotated).flatten(0, 1)
        key_value_up = self._of_heads(f"{name}.kv_b_proj.weight", nope + config.v_head_dim, latent)
        key_up, value_up = key_value_up.split_with_sizes((nope, config.v_head_dim), dim=1)
        values = config.num_heads * config.v_head_dim
        own_values = self._weights.share.columns(values, "values of all heads")
        output = self._product(self._weights.matrix((f"{name}.o_proj.weight",), (hidden,), values, own_values))
        parts = MlaParts(
            down=self._linear(torch.cat((read(f"{name}.q_a_proj.weight", query_rank, hidden), key_down))),
            query_norm=self._norm(f"{name}.q_a_layernorm", query_rank, config.query_scale),
            query_up=self._linear(query_up),
            latent_norm=self._norm(f"{name}.kv_a_layernorm", latent, config.latent_scale),
            output=self._ranks.summed(output),
            projections=LatentProjections(key_up.contiguous(), value_up.transpose(1, 2).contiguous()),
        )
        return Mla(parts, query_rank=query_rank, latent=latent, nope=nope)

    def _of_heads(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """[this process's heads, rows, columns] of a matrix with so many rows per head."""
        all_rows = self._config.num_heads * rows
        part = self._weights.share.rows(all_rows, "rows of all heads")
        return self._weights.tensor(name, all_rows, columns, part=part).view(len(self._own_heads), rows, columns)

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
        own = self._own_experts
        gates_and_ups = [tuple(f"{name}.experts.{each}.{kind}_proj.weight" for kind in ("gate", "up")) for each in own]
        downs = [(f"{name}.experts.{each}.down_proj.weight",) for each in own]
        experts = ExpertWeights(
            gate_up=self._weights.matrices(gates_and_ups, (inner, inner), hidden),
            down=self._weights.matrices(downs, (hidden,), inner),
        )
        gives_back = self._weights.share.is_first
        return MixtureOfExperts(router, experts, self._tally, num_real=count, first=own.start, gives_back=gives_back)
