"""The Llama family (Llama, SmolLM2, Mistral, Qwen2, Qwen3): one forward for batches that mix prefill chunks and decodes."""

from ctypes import CDLL

import torch

from engine.attention.base import AttentionBackend
from engine.attention.sdpa import SdpaAttention, Shape
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.linear import Linear, can_pack
from engine.models.base import OnHidden, OnLayer, finish_forward
from engine.models.llama_config import LlamaConfig
from engine.models.mlp import SwiGlu
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable
from engine.models.vocabulary import Embedding, Head, read_table
from engine.models.weights import TensorSource, WeightReader
from engine.native.decoder import LayerWeights, LinearWeights, NativeDecoder
from engine.split.ranks import ALONE, Ranks
from engine.split.share import ROWS, Part


class LlamaModel:
    """A Model (engine/models/base.py)."""

    def __init__(
        self,
        config: LlamaConfig,
        source: TensorSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        kernels: CDLL | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`kernels`: the native library, where this model's decode steps are to be computed by it.
        `ranks`: the processes that share it. Query heads, MLPs and the vocabulary are shared out; keys and values of all heads are
        computed by everybody, so that each has the whole KV."""
        self.config = config
        self.dtype = dtype
        self.device = device
        self.draft_head = None
        self.expert_tally = None
        self._ranks = ranks
        self._reader = _Reader(config, WeightReader(source, dtype, device, share=ranks.share))
        self.rope = RopeTable(config.rope, max_model_len, dtype, device)
        self.embedding = self._reader.table("model.embed_tokens.weight")
        self._embed = Embedding(self.embedding, ranks)
        self._decoder = None if kernels is None else NativeDecoder(kernels, config, self.embedding)
        self.layers = [self._read_layer(index) for index in range(config.num_layers)]
        norm = self._reader.tensor("model.norm.weight", config.hidden_size)
        head = LinearWeights(self.embedding if self._reader.tied else self._reader.table("lm_head.weight"))
        self.norm = RmsNorm(norm, config.rms_norm_eps)
        self.head = Head(Linear(head.weight, packed=can_pack(dtype, device)), ranks, config.vocab_size)
        if self._decoder is not None:
            self._decoder.add_head(norm, head)

    def _read_layer(self, index: int) -> "_Layer":
        weights = self._reader.layer(index)
        if self._decoder is not None:
            self._decoder.add_layer(index, weights)
        return _Layer(self.config, weights, self._ranks, packed=can_pack(self.dtype, self.device))

    def attention_over(self, pool: KVPool) -> SdpaAttention:
        config, share = self.config, self._ranks.share
        heads = share.of(config.num_heads, "attention heads")
        group = config.num_heads // config.num_kv_heads
        kv_heads = range(heads.start // group, (heads.stop - 1) // group + 1)
        if len(heads) % group and group % len(heads):  # then groups of different sizes share a KV head
            share.of(config.num_kv_heads, "KV heads")
        return SdpaAttention(pool, Shape(len(heads), len(kv_heads), config.head_dim, kv_heads.start, config.num_kv_heads))

    def forward(
        self,
        batch: Batch,
        pool: KVPool,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
        on_hidden: OnHidden | None = None,
    ) -> torch.Tensor | None:
        # Whoever wants each layer as it is computed sends it away: a prefill worker, with few tokens to decode.
        if self._decoder is not None and on_layer is None and on_hidden is None and self._decoder.takes(batch):
            return self._decoder.step(batch, pool)
        x = self._ranks.sum(self._embed(batch.token_ids))
        cos, signed_sin = self.rope.at(batch.positions)
        plan = attention.plan(batch)
        for index, layer in enumerate(self.layers):
            query, entries = layer.project(x, self.rope, cos, signed_sin)
            pool.write(index, batch.slots, entries)
            if on_layer is not None:
                on_layer(index, batch)
            x = layer.finish(x, attention.attend(index, query, plan))
        return finish_forward(self, batch, x, on_hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(hidden))


class _Layer:
    def __init__(self, config: LlamaConfig, weights: LayerWeights, ranks: Ranks, *, packed: bool) -> None:
        self._head_dim = config.head_dim
        self._heads = len(ranks.share.of(config.num_heads, "attention heads"))
        self._rotated = self._heads + config.num_kv_heads
        self._qkv, output, gate_up, down = (
            Linear(linear.weight, linear.bias, packed=packed)
            for linear in (weights.qkv, weights.output, weights.gate_up, weights.down)
        )
        self._output = ranks.summed(output)
        self._mlp = SwiGlu(gate_up, ranks.summed(down))
        self._input_norm = RmsNorm(weights.input_norm, config.rms_norm_eps)
        self._mlp_norm = RmsNorm(weights.mlp_norm, config.rms_norm_eps)
        self._qk_norm: _QkNorm | None = None
        if weights.query_norm is not None and weights.key_norm is not None:
            self._qk_norm = _QkNorm(config, self._heads, weights.query_norm, weights.key_norm)

    def project(
        self, x: torch.Tensor, rope: RopeTable, cos: torch.Tensor, signed_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotated queries [tokens, heads, head_dim] and the KV entries [tokens, entry_width]: both views of one product."""
        qkv = self._qkv(self._input_norm(x))
        heads = qkv.view(cos.shape[0], -1, self._head_dim)
        rotated = heads[:, : self._rotated]
        if self._qk_norm is not None:
            rotated.copy_(self._qk_norm(rotated))
        rope.rotate_(rotated, cos, signed_sin)
        return heads[:, : self._heads], heads[:, self._heads :].flatten(1)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream after this layer."""
        x = self._output(attended).add_(x)
        return self._mlp(self._mlp_norm(x)).add_(x)


class _QkNorm:
    """Qwen3's normalisation of each query and key head."""

    def __init__(self, config: LlamaConfig, queries: int, query: torch.Tensor, key: torch.Tensor) -> None:
        self._queries = queries
        self._query, self._key = (RmsNorm(weight, config.rms_norm_eps) for weight in (query, key))

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return torch.cat((self._query(heads[:, : self._queries]), self._key(heads[:, self._queries :])), dim=1)


class _Reader:
    """Turns the checkpoint's tensors into our weights, fusing what is multiplied with the same input."""

    def __init__(self, config: LlamaConfig, weights: WeightReader) -> None:
        self._config = config
        self._weights = weights
        source = weights.source
        self.tied = "lm_head.weight" not in source if config.tied_head is None else config.tied_head
        names = set(tensor_names(config, tied=self.tied))
        source.expect(names, lambda name: name.endswith("rotary_emb.inv_freq") or (self.tied and name == "lm_head.weight"))
        self.tensor = weights.tensor

    def table(self, name: str) -> torch.Tensor:
        """This process's rows of the embedding or the head."""
        return read_table(self._weights, name, self._config.vocab_size, self._config.hidden_size)

    def layer(self, index: int) -> LayerWeights:
        """Biases after a sum over all processes are the first one's."""
        config, prefix = self._config, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        qkv = tuple(f"{attention}.{name}_proj" for name in "qkv")
        share = self._weights.share
        share.of(config.num_heads, "attention heads")
        queries, inputs = share.rows(query, "values of all heads"), share.columns(query, "values of all heads")
        inners, inner_inputs = (part(inner, "inner values of an MLP") for part in (share.rows, share.columns))
        gate_up = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        once = share.is_first
        return LayerWeights(
            qkv=self._linear(qkv, (query, key, key), hidden, (queries, None, None), bias=config.qkv_bias),
            output=self._linear((f"{attention}.o_proj",), (hidden,), query, (inputs,), bias=config.output_bias and once),
            gate_up=self._linear(gate_up, (inner, inner), hidden, (inners, inners), bias=config.mlp_bias),
            down=self._linear((f"{mlp}.down_proj",), (hidden,), inner, (inner_inputs,), bias=config.mlp_bias and once),
            input_norm=self.tensor(f"{prefix}.input_layernorm.weight", hidden),
            mlp_norm=self.tensor(f"{prefix}.post_attention_layernorm.weight", hidden),
            query_norm=self.tensor(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
            key_norm=self.tensor(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
        )

    def _linear(
        self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, parts: tuple[Part | None, ...], *, bias: bool
    ) -> LinearWeights:
        """One product for all of `names`, their results one after another; `parts`: of each, what is this process's."""
        weight = self._weights.joined(tuple(f"{name}.weight" for name in names), rows, columns, parts)
        if not bias:
            return LinearWeights(weight)
        of_rows = (part if part is not None and part.dim == ROWS else None for part in parts)
        biases = [self.tensor(f"{name}.bias", count, part=part) for name, count, part in zip(names, rows, of_rows, strict=True)]
        return LinearWeights(weight, torch.cat(biases))


def tensor_names(config: LlamaConfig, *, tied: bool) -> list[str]:
    """Every tensor that a checkpoint of this model holds."""
    attention = [f"{name}_proj.weight" for name in "qkvo"]
    attention += [f"{name}_proj.bias" for name in "qkv"] if config.qkv_bias else []
    attention += ["o_proj.bias"] if config.output_bias else []
    attention += ["q_norm.weight", "k_norm.weight"] if config.qk_norm else []
    mlp = [f"{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")[: 1 + config.mlp_bias]]
    layer = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    layer += [f"self_attn.{name}" for name in attention] + [f"mlp.{name}" for name in mlp]
    names = [f"model.layers.{index}.{name}" for index in range(config.num_layers) for name in layer]
    return ["model.embed_tokens.weight", "model.norm.weight", *names, *([] if tied else ["lm_head.weight"])]
