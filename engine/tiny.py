"""A deterministic tiny Llama for tests: a Hugging Face folder written in milliseconds, weights drawn from a seed.

Any byte is one token, so every text round-trips. transformers' AutoTokenizer and AutoModelForCausalLM load the folder too.
The weights are drawn wide (peaked attention, logits apart by far more than float32 noise): a wrong KV entry changes the answer.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.tiny_tokenizer import ByteTokenizer, write_json

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)
BOS_TOKEN_ID, EOS_TOKEN_ID = 257, 258
MINIMAL_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


TOKENIZER = ByteTokenizer(before=(), after=SPECIAL_TOKENS, bos=IM_START, eos=IM_END, pad=PAD, chat_template=CHAT_TEMPLATE)


def write_tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    vocab_size: int = MINIMAL_VOCAB_SIZE,
    layers: int = 4,
    hidden_size: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate_size: int = 128,
    max_position_embeddings: int = 8192,
    tie_word_embeddings: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes config.json, model.safetensors, generation_config.json and the tokenizer's files; returns `folder`.

    The same arguments give the same bytes. Token ids 0-255 are the bytes, then end-of-text, im_start (bos), im_end (eos), pad.
    """
    if vocab_size < MINIMAL_VOCAB_SIZE:
        raise ValueError(f"vocab_size must be at least {MINIMAL_VOCAB_SIZE}: every byte and the special tokens")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tie_word_embeddings,
        "bos_token_id": BOS_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": [EOS_TOKEN_ID, 256]})
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int, gain: float) -> torch.Tensor:
        scale = gain / math.sqrt(columns)
        return torch.randn(rows, columns, generator=generator).mul_(scale).to(dtype)

    tensors = {"model.embed_tokens.weight": draw(vocab_size, hidden_size, math.sqrt(hidden_size) / 2)}
    for layer in range(layers):
        sizes = (hidden_size, heads * head_dim, kv_heads * head_dim, intermediate_size)
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in _layer(sizes, draw, dtype).items()}
    tensors["model.norm.weight"] = torch.ones(hidden_size, dtype=dtype)
    if not tie_word_embeddings:
        tensors["lm_head.weight"] = draw(vocab_size, hidden_size, 3.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    TOKENIZER.write(folder)
    return folder


def _layer(
    sizes: tuple[int, int, int, int], draw: Callable[[int, int, float], torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    hidden, query, key, intermediate = sizes
    return {
        "input_layernorm.weight": torch.ones(hidden, dtype=dtype),
        "post_attention_layernorm.weight": torch.ones(hidden, dtype=dtype),
        # A wide q and k makes the softmax peaked: the answer hangs on single positions, near and far.
        "self_attn.q_proj.weight": draw(query, hidden, 1.5),
        "self_attn.k_proj.weight": draw(key, hidden, 1.5),
        "self_attn.v_proj.weight": draw(key, hidden, 1.5),
        "self_attn.o_proj.weight": draw(hidden, query, 1.5),
        "mlp.gate_proj.weight": draw(intermediate, hidden, 1.0),
        "mlp.up_proj.weight": draw(intermediate, hidden, 1.0),
        "mlp.down_proj.weight": draw(hidden, intermediate, 1.0),
    }
