"""From a checkpoint's tensors to weights where and as the model computes with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from protocol.errors import ConfigError

SCALE_SUFFIX = "_scale_inv"
"""After a quantised matrix's name: what each block of it is multiplied with."""


class TensorSource(Protocol):
    """Tensors by name: a Checkpoint, or a Blueprint that knows only their shapes."""

    def __contains__(self, name: str) -> bool: ...

    def expect(self, names: set[str], ignorable: Callable[[str], bool]) -> None:
        """Raises ConfigError unless it holds exactly `names`, apart from what is `ignorable`."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`. Raises ConfigError when its shape is another."""


@dataclass(frozen=True)
class WeightReader:
    """Reads tensors into the model's format and onto its device, 8-bit matrices with block scales too."""

    source: TensorSource
    dtype: torch.dtype
    device: torch.device
    weight_block: tuple[int, int] | None = None
    """Rows and columns that share a scale, in a checkpoint with 8-bit matrices."""

    def expect(self, names: set[str], ignorable: Callable[[str], bool]) -> None:
        """As the source's, for `names` with or without scales where there may be scales."""
        scales = {f"{name}{SCALE_SUFFIX}" for name in names} if self.weight_block else set()
        self.source.expect(names, lambda name: name in scales or ignorable(name))

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`dtype`: another than the model's. Raises ConfigError for an 8-bit matrix without scales, or scales without one."""
        tensor = self.source.read(name, shape).to(self.device)
        is_quantised = tensor.is_floating_point() and tensor.itemsize == 1
        if is_quantised != (f"{name}{SCALE_SUFFIX}" in self.source):
            raise ConfigError(
                f"model: tensor {name} is {tensor.dtype}, and {name}{SCALE_SUFFIX} is there for 8-bit matrices only"
            )
        if is_quantised:
            tensor = self._dequantised(name, tensor)
        return tensor.to(dtype or self.dtype)

    def _dequantised(self, name: str, quantised: torch.Tensor) -> torch.Tensor:
        """In float32. Blocks at the lower and right edge may be smaller."""
        if self.weight_block is None or quantised.dim() != 2:
            raise ConfigError(f"model: tensor {name} is {quantised.dtype}, and config.json tells no weight_block_size for it")
        counts = tuple(-(-size // block) for size, block in zip(quantised.shape, self.weight_block, strict=True))
        scales = self.source.read(f"{name}{SCALE_SUFFIX}", counts).to(self.device, torch.float32)
        for dim, block in enumerate(self.weight_block):
            scales = scales.repeat_interleave(block, dim).narrow(dim, 0, quantised.shape[dim])
        return quantised.float() * scales

    def empty(self, *shape: int) -> torch.Tensor:
        """Memory to read several tensors into."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def joined(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> torch.Tensor:
        """Matrices with the same inputs, [sum of rows, columns]: their products are computed as one."""
        return torch.cat([self.tensor(name, count, columns) for name, count in zip(names, rows, strict=True)])
