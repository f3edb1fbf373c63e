"""The gated MLP that all families share."""

import torch
from torch.nn.functional import silu

from engine.linear import Product


class SwiGlu:
    """down(silu(gate(x)) · up(x)); gate and up are one product, their results side by side."""

    def __init__(self, gate_up: Product, down: Product) -> None:
        self._gate_up = gate_up
        self._down = down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A new tensor: the caller may add to it in place."""
        return self._down(gated(self._gate_up(x)))


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(first half) · second half of the last dimension."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)
