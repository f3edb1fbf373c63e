"""Matrix products with a model's weights: the one place that chooses a kernel."""

import torch
from torch.nn.functional import linear


class Linear:
    """y = x Wᵀ + b, for x of one token [in] or of several [tokens, in].

    On a CPU one token takes torch's matrix-vector kernel and several take oneDNN with the weight packed beforehand.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, packed: bool = False) -> None:
        self.weight = weight
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_TOKENS) if packed else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 1:
            if self.bias is None:
                return torch.mv(self.weight, x)
            return torch.addmv(self.bias, self.weight, x)
        if self._packed is not None:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
            return result
        return linear(x, self.weight, self.bias)


PACKED_FOR_TOKENS = 64
"""The batch size oneDNN lays the weight out for; measured as good as any other from 2 tokens to 512."""


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch and CPU have the packed product for `dtype`."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
