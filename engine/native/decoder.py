"""The native decode step: a model's weights as decode.c reads them, and one call per step.

The structures here are those of decode.c, field by field.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.batch import Batch
from engine.kv_pool import KVPool
from engine.models.llama_config import LlamaConfig

PANEL = 32
"""Widths are whole panels: the kernels have no remainders."""
TOKENS_PER_TILE = 16
MAX_GROUP = 16
"""Query heads that share a KV head are one tile's columns."""
MAX_WEIGHT_BYTES = 4 << 30
"""The decode step has its own copy of the weights, beside the one that oneDNN reads in prefill: no copy of larger models."""

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Linear(ctypes.Structure):
    _fields_ = (("weight", _POINTER), ("bias", _POINTER), ("inputs", _INT), ("outputs", _INT))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in ("qkv", "output", "gate_up", "down")),
        *((name, _POINTER) for name in ("input_norm", "mlp_norm", "query_norm", "key_norm")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("num_layers", "hidden", "inner", "heads", "kv_heads", "head_dim")),
        *(("norm_epsilon", _FLOAT), ("rope_factor", _FLOAT)),
        *((name, _POINTER) for name in ("rope_frequencies", "embedding", "layers", "norm")),
        ("head", _Linear),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("count", "sequences")),
        *((name, _POINTER) for name in ("rows", "token_ids", "positions", "slots", "blocks")),
        *((name, _INT) for name in ("blocks_width", "block_size")),
        ("pool", _POINTER),
        ("layer_values", _INT),
        *((name, _POINTER) for name in ("workspace", "logits")),
    )


@dataclass(frozen=True)
class LinearWeights:
    """weight [outputs, inputs] and bias [outputs]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One layer, in bfloat16; q, k, v and gate, up are joined. The q and k norms are Qwen3's."""

    qkv: LinearWeights
    output: LinearWeights
    gate_up: LinearWeights
    down: LinearWeights
    input_norm: torch.Tensor
    mlp_norm: torch.Tensor
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None


def why_not(config: LlamaConfig, dtype: torch.dtype, device: torch.device, block_size: int) -> str | None:
    """What keeps this model from the native decode step, whatever the machine; None where nothing does."""
    if dtype != torch.bfloat16 or device.type != "cpu":
        return "they compute bfloat16 on a CPU"
    if torch.get_num_threads() != 1:
        return "they use one thread, the engine several"
    widths = (config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim)
    if any(width % PANEL for width in widths):
        return "the model's widths are not multiples of 32"
    if config.num_heads // config.num_kv_heads > MAX_GROUP:
        return "a KV head shares more than 16 query heads"
    if block_size % TOKENS_PER_TILE:
        return "block_size is not a multiple of 16"
    if weight_bytes(config) > MAX_WEIGHT_BYTES:
        return "the model is larger than 4 GiB"
    return None


def weight_bytes(config: LlamaConfig) -> int:
    """Bytes of all matrices in bfloat16."""
    attention = 2 * config.num_heads * config.head_dim + config.entry_width
    layer = config.hidden_size * (attention + 3 * config.intermediate_size)
    return 2 * (config.num_layers * layer + config.vocab_size * config.hidden_size)


class NativeDecoder:
    """The next token of each of several sequences, guessed ones included, in one call without the interpreter lock. For one
    thread at a time.

    A token's logits depend on the tokens before it alone: they are the same, to the bit, whatever else is in the batch, and
    whether the tokens before it were computed with it or earlier.
    """

    def __init__(self, library: ctypes.CDLL, config: LlamaConfig, embedding: torch.Tensor) -> None:
        self._library = library
        self._config = config
        self._kept: list[torch.Tensor] = []
        self._layers = (_Layer * config.num_layers)()
        self._workspace = torch.empty(0, dtype=torch.uint8)
        frequencies, factor = config.rope.frequencies()
        self._model = _Model(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            norm_epsilon=config.rms_norm_eps,
            rope_factor=factor,
            rope_frequencies=self._keep(frequencies.float()),
            embedding=self._keep(embedding),
            layers=ctypes.addressof(self._layers),
        )

    def add_layer(self, index: int, weights: LayerWeights) -> None:
        """Takes a copy of one layer, laid out for decode."""
        self._layers[index] = _Layer(
            qkv=self._linear(weights.qkv),
            output=self._linear(weights.output),
            gate_up=self._linear(weights.gate_up),
            down=self._linear(weights.down),
            input_norm=self._keep(weights.input_norm.float()),
            mlp_norm=self._keep(weights.mlp_norm.float()),
            query_norm=None if weights.query_norm is None else self._keep(weights.query_norm.float()),
            key_norm=None if weights.key_norm is None else self._keep(weights.key_norm.float()),
        )

    def add_head(self, norm: torch.Tensor, head: LinearWeights) -> None:
        """The last normalisation, and a copy of the weight that gives the logits."""
        self._model.norm = self._keep(norm.float())
        self._model.head = self._linear(head)

    def takes(self, batch: Batch) -> bool:
        """Whether `batch` is a decode step: one is drawn after each of its tokens."""
        return batch.num_tokens == batch.num_sampled

    def step(self, batch: Batch, pool: KVPool) -> torch.Tensor:
        """Computes the batch's KV into the pool; logits [tokens, vocab_size] in float32."""
        count = batch.num_tokens
        logits = torch.empty(count, self._config.vocab_size, dtype=torch.float32)
        # A copy of what is needed: the engine may give a sequence blocks for its next step meanwhile.
        blocks = _block_table([span.sequence.blocks[: -(-span.end // pool.block_size)] for span in batch.spans])
        rows = np.cumsum([0, *(span.length for span in batch.spans)], dtype=np.int64)
        arguments = _Batch(
            count=count,
            sequences=len(batch.spans),
            rows=rows.ctypes.data,
            token_ids=batch.token_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            blocks=blocks.ctypes.data,
            blocks_width=blocks.shape[1],
            block_size=pool.block_size,
            pool=pool.data.data_ptr(),
            layer_values=pool.data.stride(0),
            workspace=self._workspace_for(count),
            logits=logits.data_ptr(),
        )
        self._library.serval_decode(ctypes.byref(self._model), ctypes.byref(arguments))
        return logits

    def _workspace_for(self, count: int) -> int:
        size = self._library.serval_workspace_bytes(ctypes.byref(self._model), count)
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8)
        return self._workspace.data_ptr()

    def _linear(self, linear: LinearWeights) -> _Linear:
        outputs, inputs = linear.weight.shape
        bias = None if linear.bias is None else self._keep(linear.bias)
        return _Linear(weight=self._keep(pack(linear.weight)), bias=bias, inputs=inputs, outputs=outputs)

    def _keep(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def pack(weight: torch.Tensor) -> torch.Tensor:
    """bfloat16 [outputs, inputs] in the order in which tiles read it: 32 outputs after another; of those, 32 inputs after
    another; of those, 16 outputs after another; as 16 pairs of inputs, each with all 16 outputs."""
    outputs, inputs = weight.shape
    pairs = weight.contiguous().view(torch.int32).view(outputs // PANEL, 2, 16, inputs // PANEL, 16)
    return pairs.permute(0, 3, 1, 4, 2).contiguous()


def _block_table(blocks: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.zeros((len(blocks), max(len(row) for row in blocks)), dtype=np.int32)
    for to, row in zip(table, blocks, strict=True):
        to[: len(row)] = row
    return table
