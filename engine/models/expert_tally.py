"""How many assignments of tokens to experts there were, and how many entered a matrix product: counted where the model computes."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExpertWork:
    """Since the model was loaded, over all layers and tokens."""

    real: int
    """Assignments to experts that compute."""
    zero: int
    """Assignments to experts that give back what they get."""
    product_rows: int
    """Rows that the experts' grouped products computed, each counted once for its products."""


class ExpertTally:
    """One per model. Adding waits for no device; reading does, from any thread."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def add(self, is_real: torch.Tensor, product_rows: torch.Tensor) -> None:
        """`is_real` [assignments]: whether the chosen expert computes; `product_rows`: one number on the same device."""
        real = is_real.sum()
        self._counts += torch.stack((real, is_real.shape[0] - real, product_rows))

    def read(self) -> ExpertWork:
        return ExpertWork(*self._counts.tolist())
