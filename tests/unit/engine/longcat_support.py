"""transformers' LongCat-Flash on random small configs, and the same weights as a checkpoint in the released form.

Where transformers departs from the model, both are aligned here:
- its low-rank norms take epsilon 1e-6 whatever config.json says: they are given rms_norm_eps;
- it allocates gate and up matrices for zero experts too: they are left out of the checkpoint;
- its correction bias starts at zero: it is drawn at random;
- it fails where a token has one expert only: there are always more;
- it ignores the scale flags, which are always on: the checkpoints leave them out, which means on.
It turns rotary pairs into halves as we do, so even the cache agrees.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
    "beta_fast": 32,
    "beta_slow": 1,
}


def random_config(seed: int) -> LongcatFlashConfig:
    """Every fourth with YaRN; some without zero experts, some with as many chosen experts as there are."""
    drawn = random.Random(f"longcat {seed}")
    experts, zero_experts = drawn.choice([2, 3, 8, 13]), drawn.choice([0, 1, 4, 9])
    rotated = drawn.choice([2, 4, 8, 10])
    rope = {"rope_theta": drawn.choice([1e4, 5e6, 1e7]), **(YARN if seed % 4 == 3 else {"rope_type": "default"})}
    return LongcatFlashConfig(
        vocab_size=drawn.choice([100, 128, 203]),
        hidden_size=drawn.choice([24, 48, 64]),
        num_layers=drawn.choice([1, 2, 3]),
        num_attention_heads=drawn.choice([1, 2, 3, 4, 8]),
        ffn_hidden_size=drawn.choice([40, 96]),
        q_lora_rank=drawn.choice([8, 24, 36]),
        kv_lora_rank=drawn.choice([8, 16, 20]),
        qk_nope_head_dim=drawn.choice([8, 12, 16]),
        qk_rope_head_dim=rotated,
        head_dim=rotated,
        v_head_dim=drawn.choice([4, 16, 40]),
        moe_topk=drawn.randint(2, min(6, experts + zero_experts)),
        n_routed_experts=experts,
        zero_expert_num=zero_experts,
        expert_ffn_hidden_size=drawn.choice([8, 32]),
        routed_scaling_factor=drawn.choice([1.0, 2.5, 6.0]),
        rms_norm_eps=drawn.choice([1e-6, 1e-5, 1e-3]),
        max_position_embeddings=128,
        rope_parameters=rope,
        initializer_range=0.15,
    )


def random_model(config: LongcatFlashConfig, seed: int) -> Any:
    """Norms and the correction bias not at their neutral values."""
    torch.manual_seed(seed)
    model = LongcatFlashForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    for name, module in model.named_modules():
        if name.endswith("router"):
            module.e_score_correction_bias.uniform_(-0.1, 0.1)
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            module.variance_epsilon = config.rms_norm_eps
    return model


def write_released(model: Any, folder: Path, head: dict[str, torch.Tensor] | None = None) -> Path:
    """config.json without model_type, the tensors under the released names; `head`: those of an MTP head, of which transformers
    knows nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = model.config.to_dict() | {"architectures": ["LongcatFlashForCausalLM"]}
    del raw["model_type"]
    rope = dict(raw.pop("rope_parameters"))
    raw |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope if rope["rope_type"] != "default" else None}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(released_tensors(model) | (head or {}), folder / "model.safetensors")
    return folder


def released_tensors(model: Any) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        prefix, is_experts, kind = name.rpartition(".experts.")
        if not is_experts:
            tensors[name] = tensor.clone()
            continue
        for expert in range(model.config.n_routed_experts):
            parts = zip(("gate_proj", "up_proj"), tensor[expert].chunk(2), strict=True)
            matrices = dict(parts) if kind == "gate_up_proj" else {"down_proj": tensor[expert]}
            tensors |= {f"{prefix}.experts.{expert}.{part}.weight": matrix.clone() for part, matrix in matrices.items()}
    return tensors
