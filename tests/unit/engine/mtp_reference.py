"""LongCat-Flash's MTP head written down once more, in plain torch: no cache, no batches, one formula after another.

It follows the released checkpoint's names. What it takes from transformers is the target's: the hidden states after the final norm,
the rotation's angles, the factor on the scores.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import LongcatFlashConfig

LAYER = "model.mtp.layers.0"
Tensors = dict[str, torch.Tensor]


def random_head(config: LongcatFlashConfig, seed: int) -> Tensors:
    """Every tensor of a head, norms not at 1; every other head has no embedding of its own."""
    drawn = torch.Generator().manual_seed(seed)
    hidden, inner, heads = config.hidden_size, config.ffn_hidden_size, config.num_attention_heads
    nope, rotated, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.mtp.norm": (hidden,),
        f"{LAYER}.enorm.m": (hidden,),
        f"{LAYER}.hnorm.m": (hidden,),
        f"{LAYER}.eh_proj": (hidden, 2 * hidden),
        f"{LAYER}.input_layernorm": (hidden,),
        f"{LAYER}.post_attention_layernorm": (hidden,),
        f"{LAYER}.self_attn.q_a_proj": (config.q_lora_rank, hidden),
        f"{LAYER}.self_attn.q_a_layernorm": (config.q_lora_rank,),
        f"{LAYER}.self_attn.q_b_proj": (heads * (nope + rotated), config.q_lora_rank),
        f"{LAYER}.self_attn.kv_a_proj_with_mqa": (config.kv_lora_rank + rotated, hidden),
        f"{LAYER}.self_attn.kv_a_layernorm": (config.kv_lora_rank,),
        f"{LAYER}.self_attn.kv_b_proj": (heads * (nope + value), config.kv_lora_rank),
        f"{LAYER}.self_attn.o_proj": (hidden, heads * value),
        f"{LAYER}.transformer_layer.mlp.gate_proj": (inner, hidden),
        f"{LAYER}.transformer_layer.mlp.up_proj": (inner, hidden),
        f"{LAYER}.transformer_layer.mlp.down_proj": (hidden, inner),
    }
    if random.Random(f"embedding {seed}").random() < 0.5:
        shapes["model.mtp.embed_tokens"] = (config.vocab_size, hidden)
    return {f"{name}.weight": _draw(shape, drawn) for name, shape in shapes.items()}


def _draw(shape: tuple[int, ...], drawn: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.rand(shape, generator=drawn) + 0.5
    return torch.randn(shape, generator=drawn) * 0.15


class ReferenceHead:
    """The head over one whole sequence."""

    def __init__(self, tensors: Tensors, target: Any) -> None:
        """`target`: transformers' model."""
        self._tensors = tensors
        self._target = target
        self._config: LongcatFlashConfig = target.config

    @torch.inference_mode()
    def __call__(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits after each of `tokens` but the first: row i is what may follow token i + 1. And what its attention keeps of them,
        [len(tokens) - 1, latent + rotated]: the rotated part as pairs, the way the weights have it."""
        ids = torch.tensor(tokens)
        hidden = self._target.model(ids[:-1].unsqueeze(0)).last_hidden_state[0]
        table = self._tensors.get("model.mtp.embed_tokens.weight", self._target.model.embed_tokens.weight)
        token = self._norm(f"{LAYER}.enorm.m", table[ids[1:]])
        x = self._times(f"{LAYER}.eh_proj", torch.cat((token, self._norm(f"{LAYER}.hnorm.m", hidden)), dim=-1))
        attended, kept = self._attention(self._norm(f"{LAYER}.input_layernorm", x))
        x = x + attended
        x = x + self._mlp(self._norm(f"{LAYER}.post_attention_layernorm", x))
        return self._norm("model.mtp.norm", x) @ self._target.lm_head.weight.T, kept

    def _attention(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config, name = self._config, f"{LAYER}.self_attn"
        heads, nope, latent = config.num_attention_heads, config.qk_nope_head_dim, config.kv_lora_rank
        low_rank = self._norm(f"{name}.q_a_layernorm", self._times(f"{name}.q_a_proj", x))
        query = self._times(f"{name}.q_b_proj", low_rank).view(len(x), heads, -1)
        query = query * (config.hidden_size / config.q_lora_rank) ** 0.5
        down = self._times(f"{name}.kv_a_proj_with_mqa", x)
        latents = self._norm(f"{name}.kv_a_layernorm", down[:, :latent]) * (config.hidden_size / latent) ** 0.5
        turn = self._turn(len(x))
        key_rotated = turn(down[:, None, latent:])
        up = self._times(f"{name}.kv_b_proj", latents).view(len(x), heads, -1)
        keys = torch.cat((up[..., :nope], key_rotated.expand(-1, heads, -1)), dim=-1)
        queries = torch.cat((query[..., :nope], turn(query[..., nope:])), dim=-1)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * self._target.model.layers[0].self_attn[0].scaling
        unseen = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(unseen, float("-inf")).softmax(dim=-1)
        values = torch.einsum("hqk,khv->qhv", weights, up[..., nope:]).flatten(1)
        return self._times(f"{name}.o_proj", values), torch.cat((latents, key_rotated[:, 0]), dim=-1)

    def _turn(self, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Neighbours (0, 1), (2, 3), … of [positions, heads, rotated] are turned as pairs."""
        cos, sin = self._target.model.rotary_emb(torch.zeros(1), torch.arange(count).unsqueeze(0))
        half = self._config.qk_rope_head_dim // 2
        cos, sin = cos[0, :, None, :half], sin[0, :, None, :half]

        def turned(heads: torch.Tensor) -> torch.Tensor:
            first, second = heads[..., ::2], heads[..., 1::2]
            return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)

        return turned

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        name = f"{LAYER}.transformer_layer.mlp"
        gate = self._times(f"{name}.gate_proj", x)
        return self._times(f"{name}.down_proj", gate * gate.sigmoid() * self._times(f"{name}.up_proj", x))

    def _times(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self._tensors[f"{name}.weight"].T

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + self._config.rms_norm_eps).sqrt() * self._tensors[f"{name}.weight"]
