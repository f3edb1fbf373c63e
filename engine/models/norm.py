"""Root-mean-square normalisation."""

import torch
from torch.nn.functional import rms_norm


class RmsNorm:
    """x / √(mean(x²) + ε) · weight over the last dimension, computed in float32."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self._weight = weight
        self._shape = tuple(weight.shape)
        self._epsilon = epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self._shape, self._weight, self._epsilon)
