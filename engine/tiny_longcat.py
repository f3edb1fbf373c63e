"""A deterministic tiny LongCat-Flash for tests: a folder in the released form, weights drawn from a seed, a few MB.

As released: tensor names, several safetensors files with an index, config.json without model_type, the MTP head's tensors, the chat
and tool format, end of text as token 2. The weights are drawn wide: a wrong KV entry or a wrong expert changes the answer.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from engine.models.blueprint import tensor_shapes
from engine.models.longcat_names import MTP_EMBEDDING, MTP_PREFIX
from engine.models.registry import read_model_config
from engine.tiny_tokenizer import ByteTokenizer, write_json
from protocol.chat_templates import LONGCAT_CHAT

FILES = 3
"""Into which the tensors are spread."""

TOKENIZER = ByteTokenizer(
    before=("<longcat_unk>", "<longcat_s>", "</longcat_s>", "<longcat_pad>"),
    after=(
        *("<longcat_tool_call>", "</longcat_tool_call>", "<longcat_arg_key>", "</longcat_arg_key>"),
        *("<longcat_arg_value>", "</longcat_arg_value>"),
    ),
    bos="<longcat_s>",
    eos="</longcat_s>",
    pad="<longcat_pad>",
    chat_template=LONGCAT_CHAT,
)
BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID = 1, 2, 3

CONFIG: dict[str, Any] = {
    "architectures": ["LongcatFlashForCausalLM"],
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 96,
    "num_layers": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "ffn_hidden_size": 192,
    "expert_ffn_hidden_size": 48,
    "n_routed_experts": 16,
    "zero_expert_num": 8,
    "zero_expert_type": "identity",
    "moe_topk": 4,
    "routed_scaling_factor": 6.0,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": PAD_TOKEN_ID,
}

LITE_CONFIG = CONFIG | {
    "architectures": ["LongcatFlashNgramForCausalLM"],
    "rope_scaling": {
        "type": "yarn",
        "factor": 10,
        "original_max_position_embeddings": 512,
        "mscale": 1,
        "mscale_all_dim": 1,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "emb_neighbor_num": 4,
    "emb_split_num": 2,
    "ngram_vocab_size_ratio": 5,
}
"""As of LongCat-Flash-Lite: embeddings of n-grams, and YaRN."""

GAINS = {"embed_tokens": 0.5, "lm_head": 3.0, "classifier": 1.5, "q_b_proj": 1.5, "kv_a_proj_with_mqa": 1.5, "o_proj": 1.5}
"""By a matrix's name; 1 for the others. A matrix of gain 1 keeps the size of what it multiplies."""


def write_tiny_longcat(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, raw: Mapping[str, Any] = CONFIG
) -> Path:
    """Writes a whole checkpoint with `raw` as config.json; returns `folder`. The same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**raw, "torch_dtype": str(dtype).removeprefix("torch.")})
    write_json(folder / "generation_config.json", {"bos_token_id": BOS_TOKEN_ID, "eos_token_id": EOS_TOKEN_ID})
    TOKENIZER.write(folder)
    generator = torch.Generator().manual_seed(seed)
    config = read_model_config(folder).with_draft_head()
    assert config is not None
    shapes = tensor_shapes(config) | {MTP_EMBEDDING: (config.vocab_size, config.hidden_size)}
    _write_files(folder, {name: _draw(name, shape, generator).to(dtype) for name, shape in shapes.items()})
    return folder


def _kind(name: str) -> str:
    """The module's own name: of `…q_b_proj.weight`, q_b_proj."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms around 1, the correction bias around 0 and wide enough to change choices."""
    if len(shape) == 1:
        spread, middle = (0.02, 0.0) if name.endswith("e_score_correction_bias") else (0.5, 1.0)
        return (torch.rand(shape, generator=generator) - 0.5) * 2 * spread + middle
    gain = GAINS.get(_kind(name), 1.0)
    return torch.randn(shape, generator=generator) * (gain if _kind(name) == "embed_tokens" else gain / math.sqrt(shape[1]))


def _write_files(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The MTP head last, as it was released."""
    names = sorted(tensors, key=lambda name: (name.startswith(MTP_PREFIX), name))
    bounds = [len(names) * index // FILES for index in range(FILES + 1)]
    weight_map: dict[str, str] = {}
    for number, (begin, end) in enumerate(pairwise(bounds), start=1):
        file = f"model-{number:05d}-of-{FILES:05d}.safetensors"
        save_file({name: tensors[name] for name in names[begin:end]}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[begin:end], file)
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
