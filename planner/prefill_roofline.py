"""The least GPU time that a prompt can take. A prompt's tokens are many, so what is multiplied decides, not what is read, and
tokens on their way to experts are hidden behind it (docs/planner.md)."""

from planner.decode_roofline import ATTENTION_EFFICIENCY, NumberFormat
from planner.gpus import Gpu
from planner.model_shape import ModelShape


def prompt_gpu_s(model: ModelShape, gpu: Gpu, number_format: NumberFormat, tokens: float, cached: float = 0.0) -> float:
    """GPU seconds of a prompt of `tokens`, of which the first `cached` are in the cache."""
    new = tokens - cached
    dense = 2 * new * model.common_parameters / gpu.flops(number_format.dense)
    experts = 0.0
    if model.experts is not None:
        chosen = model.expert_layers * model.experts.chosen * model.experts.parameters
        experts = 2 * new * chosen / gpu.flops(number_format.experts)
    pairs = new * (cached + new / 2)  # each token sees those before it
    core = model.kv_layers * pairs * model.attention.prefill_flops / (gpu.bf16_flops * ATTENTION_EFFICIENCY)
    return dense + experts + core
