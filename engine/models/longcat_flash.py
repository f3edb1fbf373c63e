"""LongCat-Flash: two latent attentions and two dense MLPs per layer, and a mixture of experts on a shortcut around the second half.

Sources: arXiv 2509.01322 and the released checkpoints' own code; compared with transformers' LongcatFlashForCausalLM in tests.
"""

import torch

from engine.attention.base import AttentionBackend
from engine.attention.mla import LatentShape, MlaAttention
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.models.base import OnHidden, OnLayer, finish_forward
from engine.models.expert_tally import ExpertTally
from engine.models.longcat_config import LongcatConfig
from engine.models.longcat_mtp import MtpHead
from engine.models.longcat_weights import LongcatReader
from engine.models.mla import Mla
from engine.models.rope import RopeTable
from engine.models.weights import TensorSource, WeightReader
from engine.split.ranks import ALONE, Ranks


class LongcatModel:
    """A Model (engine/models/base.py). Layer L's attentions are KV layers 2L and 2L + 1; the MTP head's, if it is on, the last."""

    def __init__(
        self,
        config: LongcatConfig,
        source: TensorSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        keeps_eight_bit: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """`keeps_eight_bit`: of an 8-bit checkpoint, the matrices that are most of it: experts, MLPs, attentions' outputs.
        `ranks`: the processes that share it. Heads, inner values of MLPs, experts and the vocabulary are shared out; norms, the
        ways down to the latents and routers are everybody's."""
        self.config = config
        self.device = device
        self._ranks = ranks
        self.expert_tally = ExpertTally(device)
        weights = WeightReader(source, dtype, device, config.weight_block, keeps_eight_bit, ranks.share)
        reader = LongcatReader(config, weights, self.expert_tally, ranks)
        self._rope = RopeTable(config.rope, max_model_len, dtype, device)
        self._embedding = reader.embedding()
        self._ngrams = reader.ngrams()
        self._layers = [reader.layer(index) for index in range(config.num_layers)]
        self._norm, self._head = reader.head()
        self.draft_head: MtpHead | None = None
        if config.with_mtp:
            layer = reader.mtp_layer(self._embedding)
            kv_layer = 2 * config.num_layers
            self.draft_head = MtpHead(layer, self._norm, self._head, self._rope, kv_layer, ranks)

    def attention_over(self, pool: KVPool) -> MlaAttention:
        config = self.config
        shape = LatentShape(
            heads=config.num_heads // self._ranks.share.size,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            latent=config.kv_lora_rank,
            value=config.v_head_dim,
            scale=config.softmax_scale,
        )
        attentions = [attention for layer in self._layers for attention in layer.attentions]
        if self.draft_head is not None:
            attentions.append(self.draft_head.attention)
        return MlaAttention(pool, shape, [attention.projections for attention in attentions])

    def forward(
        self,
        batch: Batch,
        pool: KVPool,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
        on_hidden: OnHidden | None = None,
    ) -> torch.Tensor | None:
        x = self._embedding(batch.token_ids)
        if self._ngrams is not None:
            x = self._ngrams(x, batch)
        x = self._ranks.sum(x)
        cores = _AttentionCores(batch, pool, attention, on_layer, self._rope)
        if self.draft_head is not None:
            self.draft_head.plan(batch, attention, cores.plan)
        for index, layer in enumerate(self._layers):
            x = cores.run(2 * index, layer.attentions[0], layer.input_norms[0](x)).add_(x)
            branched = layer.post_attention_norms[0](x)
            shortcut = layer.experts(branched)
            x = layer.mlps[0](branched).add_(x)
            x = cores.run(2 * index + 1, layer.attentions[1], layer.input_norms[1](x)).add_(x)
            x = self._ranks.sum(layer.mlps[1](layer.post_attention_norms[1](x)).add_(shortcut)).add_(x)
        return finish_forward(self, batch, x, on_hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._head(self._norm(hidden))


class _AttentionCores:
    """What the attentions of one forward share."""

    def __init__(
        self, batch: Batch, pool: KVPool, attention: AttentionBackend, on_layer: OnLayer | None, rope: RopeTable
    ) -> None:
        self._batch = batch
        self._pool = pool
        self._attention = attention
        self._on_layer = on_layer
        self._rope = rope
        self._turn = rope.at(batch.positions)
        self.plan = attention.plan(batch)

    def run(self, kv_layer: int, attention: Mla, x: torch.Tensor) -> torch.Tensor:
        """What attention gives back to the residual stream; its KV is in the pool, and told of, before its core computes."""
        down = attention.down(x)
        self._pool.write(kv_layer, self._batch.slots, attention.entries(down, self._rope, *self._turn))
        if self._on_layer is not None:
            self._on_layer(kv_layer, self._batch)
        query = attention.queries(down, self._rope, *self._turn)
        return attention.output(self._attention.attend(kv_layer, query, self.plan))
