"""The Llama family (Llama, SmolLM2, Mistral, Qwen2, Qwen3): one forward for batches that mix prefill chunks and decodes."""

from collections.abc import Callable

import torch
from torch.nn.functional import embedding, silu

from engine.attention.base import AttentionBackend
from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.linear import Linear, can_pack
from engine.models.checkpoint import Checkpoint
from engine.models.config import ModelConfig
from engine.models.norm import RmsNorm
from engine.models.rope import RopeTable

OnLayer = Callable[[int, Batch], None]
"""Called with (layer, batch) once per layer, as soon as that layer's KV of the batch's spans is in the pool."""


class LlamaModel:
    """Weights and the forward pass. Owns no KV."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._reader = _Reader(config, checkpoint, dtype, device)
        self.rope = RopeTable(config.rope, max_model_len, dtype, device)
        self.embedding = self._reader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.layers = [_Layer(config, self._reader, index) for index in range(config.num_layers)]
        self.norm = self._reader.norm("model.norm", config.hidden_size)
        if self._reader.tied:
            self.head = Linear(self.embedding, packed=can_pack(dtype, device))
        else:
            self.head = self._reader.linear(("lm_head",), (config.vocab_size,), config.hidden_size, bias=False)

    def forward(
        self, batch: Batch, pool: KVPool, attention: AttentionBackend, on_layer: OnLayer | None = None
    ) -> torch.Tensor | None:
        """Computes the batch's KV into the pool; logits [sampled sequences, vocab_size], or None where none is sampled."""
        x = embedding(batch.token_ids, self.embedding)
        cos, signed_sin = self.rope.at(batch.positions)
        plan = attention.plan(batch)
        for index, layer in enumerate(self.layers):
            query, entries = layer.project(x, self.rope, cos, signed_sin)
            pool.write(index, batch.slots, entries)
            if on_layer is not None:
                on_layer(index, batch)
            x = layer.finish(x, attention.attend(index, query, plan))
        if not batch.sampled:
            return None
        if batch.num_tokens > len(batch.sampled):
            x = x[batch.sampled_rows]
        return self.head(self.norm(x))


class _Layer:
    def __init__(self, config: ModelConfig, reader: "_Reader", index: int) -> None:
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        self._head_dim = config.head_dim
        self._heads = config.num_heads
        self._rotated = config.num_heads + config.num_kv_heads
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        self._input_norm = reader.norm(f"{prefix}.input_layernorm", hidden)
        qkv = tuple(f"{attention}.{name}_proj" for name in "qkv")
        self._qkv = reader.linear(qkv, (query, key, key), hidden, bias=config.qkv_bias)
        self._qk_norm = _QkNorm(config, reader, attention) if config.qk_norm else None
        self._output = reader.linear((f"{attention}.o_proj",), (hidden,), query, bias=config.output_bias)
        self._mlp_norm = reader.norm(f"{prefix}.post_attention_layernorm", hidden)
        self._inner = inner
        self._gate_up = reader.linear((f"{mlp}.gate_proj", f"{mlp}.up_proj"), (inner, inner), hidden, bias=config.mlp_bias)
        self._down = reader.linear((f"{mlp}.down_proj",), (hidden,), inner, bias=config.mlp_bias)

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
        gate_up = self._gate_up(self._mlp_norm(x))
        inner = silu(gate_up[:, : self._inner]).mul_(gate_up[:, self._inner :])
        return self._down(inner).add_(x)


class _QkNorm:
    """Qwen3's normalisation of each query and key head."""

    def __init__(self, config: ModelConfig, reader: "_Reader", attention: str) -> None:
        self._queries = config.num_heads
        self._query, self._key = (reader.norm(f"{attention}.{name}_norm", config.head_dim) for name in "qk")

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        return torch.cat((self._query(heads[:, : self._queries]), self._key(heads[:, self._queries :])), dim=1)


class _Reader:
    """Turns the checkpoint's tensors into our weights, fusing what is multiplied with the same input."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._packed = can_pack(dtype, device)
        self.tied = "lm_head.weight" not in checkpoint if config.tied_head is None else config.tied_head
        names = set(tensor_names(config, tied=self.tied))
        checkpoint.expect(names, lambda name: name.endswith("rotary_emb.inv_freq") or (self.tied and name == "lm_head.weight"))

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        return self._checkpoint.read(name, shape).to(device=self._device, dtype=self._dtype)

    def norm(self, name: str, width: int) -> RmsNorm:
        return RmsNorm(self.tensor(f"{name}.weight", width), self._config.rms_norm_eps)

    def linear(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, *, bias: bool) -> Linear:
        """One product for all of `names`, their results one after another."""
        pairs = list(zip(names, rows, strict=True))
        weight = torch.cat([self.tensor(f"{name}.weight", count, columns) for name, count in pairs])
        joined_bias = torch.cat([self.tensor(f"{name}.bias", count) for name, count in pairs]) if bias else None
        return Linear(weight, joined_bias, packed=self._packed)


def tensor_names(config: ModelConfig, *, tied: bool) -> list[str]:
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
