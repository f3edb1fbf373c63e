"""From a checkpoint's tensors to weights where and as the model computes with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class TensorSource(Protocol):
    """Tensors by name: a Checkpoint, or a Blueprint that knows only their shapes."""

    def __contains__(self, name: str) -> bool: ...

    def expect(self, names: set[str], ignorable: Callable[[str], bool]) -> None:
        """Raises ConfigError unless it holds exactly `names`, apart from what is `ignorable`."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`. Raises ConfigError when its shape is another."""


@dataclass(frozen=True)
class WeightReader:
    """Reads tensors into the model's format and onto its device."""

    source: TensorSource
    dtype: torch.dtype
    device: torch.device

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`dtype`: another than the model's."""
        return self.source.read(name, shape).to(device=self.device, dtype=dtype or self.dtype)

    def empty(self, *shape: int) -> torch.Tensor:
        """Memory to read several tensors into."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def joined(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> torch.Tensor:
        """Matrices with the same inputs, [sum of rows, columns]: their products are computed as one."""
        return torch.cat([self.tensor(name, count, columns) for name, count in zip(names, rows, strict=True)])
