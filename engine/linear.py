"""Matrix products with a model's weights: the one place that chooses a kernel.

On a CPU the weight is laid out once as oneDNN's kernels read it (torch.ops.mkldnn, what torch's own compiler emits for frozen
weights); torch.nn.functional.linear takes plain weights and lays them out anew in every call. Measured on one core with
AVX512-BF16 and AMX, all products of one step of SmolLM2-135M, milliseconds:

    tokens                       1     2     4     8    16
    bfloat16, linear            71    76    81    75    61
    bfloat16, packed            41    55    56    42    43    (reading 269 MB of memory once: 30)
    bfloat16, matrix-vector     41
    float32 (10 layers), linear 20          41    57
    float32, packed             25          26    30

Decode steps in bfloat16 on one thread are computed in engine/native/ where the machine can: 28 to 33 for 1 to 16 tokens. FBGEMM's
float16 kernels came out at 42 and 51 ms for 1 and 8 tokens.

oneDNN writes machine code for every number of tokens that it meets: 3 to 8 ms and about half a MiB for each product's shape, kept
for the last thousand or more of them. So the packed product is given few numbers of tokens, and what is missing is filled up with
zeros. Measured with the four products of a SmolLM2 layer and 1,500 numbers drawn from 1 to 512, seconds of CPU for each 500:

                                 bfloat16                    float32
    the numbers as they come     877 MiB, 7.3 to 8.1 s       968 MiB, 12.4 to 13.5 s
    56 of the 512                146 MiB, 2.3 to 3.0 s       146 MiB, 11.5 to 14.0 s
"""

from collections.abc import Callable

import torch
from torch.nn.functional import linear, pad

Product = Callable[[torch.Tensor], torch.Tensor]
"""y = x Wᵀ for x [tokens, in], whatever W is kept as: a Linear, or an EightBitLinear (engine/eight_bit.py)."""

PACKED_FOR_TOKENS = 64
"""The batch size that oneDNN lays the weight out for. Measured as good as any other for 1 to 512 tokens; 1 and 8 are worse."""


class Linear:
    """y = x Wᵀ + b for x [tokens, in]; `packed` where `can_pack` says so. Keeps one copy of the weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, packed: bool = False) -> None:
        self._packed = packed
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_TOKENS) if packed else weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._packed:
            return linear(x, self._weight, self._bias)
        tokens = x.shape[0]
        if missing := filled_up(tokens) - tokens:
            x = pad(x, (0, 0, 0, missing))
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return result[:tokens]


def filled_up(tokens: int) -> int:
    """The number of tokens that the packed product is computed for: the next with at most four leading binary digits that are not
    all zero. So every number up to 16, then 8 per doubling, at most an eighth too many, 56 of the numbers up to 512."""
    step = 1 << max(0, (tokens - 1).bit_length() - 4)
    return -(-tokens // step) * step


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch and this CPU have the packed product for `dtype`."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
