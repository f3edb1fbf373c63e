"""Root-mean-square normalisation."""

import torch
from torch.nn.functional import layer_norm, rms_norm


class RmsNorm:
    """x / √(mean(x²) + ε) · weight over the last dimension, computed in float32.

    torch has one fused kernel for layer_norm on CPUs and none for rms_norm, which it composes of eight. A vector followed by its
    negative has mean 0 and the vector's own mean square, so layer_norm of the two is rms_norm. In bfloat16 that takes 19 µs
    instead of 33 for one token of width 576 and 0.8 ms instead of 2.8 for 512; in float32 it is no faster.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self._weight = weight
        self._shape = tuple(weight.shape)
        self._epsilon = epsilon
        self._mirrored = torch.cat((weight, weight)) if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._mirrored is None:
            return rms_norm(x, self._shape, self._weight, self._epsilon)
        pair = torch.cat((x, x.neg()), dim=-1)
        return layer_norm(pair, tuple(self._mirrored.shape), self._mirrored, None, self._epsilon)[..., : self._shape[0]]
