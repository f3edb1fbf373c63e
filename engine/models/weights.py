"""From a checkpoint's tensors to weights where and as the model computes with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine.eight_bit import FORMAT, EightBitMatrix, Matrix
from protocol.errors import ConfigError

SCALE_SUFFIX = "_scale_inv"
"""After a quantised matrix's name: what each block of it is multiplied with."""


class TensorSource(Protocol):
    """Tensors by name: a Checkpoint, or a Blueprint that knows only their shapes."""

    def __contains__(self, name: str) -> bool: ...

    def expect(self, names: set[str], ignorable: Callable[[str], bool]) -> None:
        """Raises ConfigError unless it holds exactly `names`, apart from what is `ignorable`."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`; whoever keeps it copies it. Raises ConfigError when its shape is another."""


@dataclass(frozen=True)
class WeightReader:
    """Reads tensors into the model's format and onto its device, 8-bit matrices with block scales too."""

    source: TensorSource
    dtype: torch.dtype
    device: torch.device
    weight_block: tuple[int, int] | None = None
    """Rows and columns that share a scale, in a checkpoint with 8-bit matrices."""
    keeps_eight_bit: bool = False
    """Whether `matrix` and `matrices` keep 8-bit ones as they are, where blocks divide them evenly."""

    def expect(self, names: set[str], ignorable: Callable[[str], bool]) -> None:
        """As the source's, for `names` with or without scales where there may be scales."""
        scales = {f"{name}{SCALE_SUFFIX}" for name in names} if self.weight_block else set()
        self.source.expect(names, lambda name: name in scales or ignorable(name))

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`dtype`: another than the model's. Raises ConfigError for an 8-bit matrix without scales, or scales without one."""
        return self._stored(name, shape).to(self.device, dtype or self.dtype, copy=True)

    def read_into(self, target: torch.Tensor, name: str) -> None:
        """The tensor `name`, of target's shape, in target's format and place. Raises ConfigError as `tensor` does."""
        target.copy_(self._stored(name, tuple(target.shape)))

    def _stored(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As it is in the source, but for an 8-bit matrix, which is widened on the device."""
        tensor = self.source.read(name, shape)
        is_quantised = tensor.is_floating_point() and tensor.itemsize == 1
        if is_quantised != (f"{name}{SCALE_SUFFIX}" in self.source):
            raise ConfigError(
                f"model: tensor {name} is {tensor.dtype}, and {name}{SCALE_SUFFIX} is there for 8-bit matrices only"
            )
        return self._dequantised(name, tensor.to(self.device)) if is_quantised else tensor

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
        together = self.empty(sum(rows), columns)
        for name, part in zip(names, together.split_with_sizes(rows), strict=True):
            self.read_into(part, name)
        return together

    def matrix(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> Matrix:
        """As `joined`, in 8 bits if they are kept so and all of these are."""
        if not self._keeps(names, rows, columns):
            return self.joined(names, rows, columns)
        together = self._eight_bit([names], rows, columns)
        return EightBitMatrix(together.values[0], together.scales[0])

    def matrices(self, groups: Sequence[tuple[str, ...]], rows: tuple[int, ...], columns: int) -> Matrix:
        """[groups, sum of rows, columns]: of each group what `matrix` gives."""
        if all(self._keeps(names, rows, columns) for names in groups):
            return self._eight_bit(groups, rows, columns)
        together = self.empty(len(groups), sum(rows), columns)
        for names, place in zip(groups, together, strict=True):
            for name, part in zip(names, place.split_with_sizes(rows), strict=True):
                self.read_into(part, name)
        return together

    def _keeps(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int) -> bool:
        if not self.keeps_eight_bit or self.weight_block is None:
            return False
        divides = columns % self.weight_block[1] == 0 and all(count % self.weight_block[0] == 0 for count in rows)
        return divides and all(f"{name}{SCALE_SUFFIX}" in self.source for name in names)

    def _eight_bit(self, groups: Sequence[tuple[str, ...]], rows: tuple[int, ...], columns: int) -> EightBitMatrix:
        """Values and scales as stored, laid side by side like the matrices of `matrices`."""
        assert self.weight_block is not None
        block_rows, block_columns = self.weight_block
        scale_rows, scale_columns = tuple(count // block_rows for count in rows), columns // block_columns
        values = torch.empty(len(groups), sum(rows), columns, dtype=FORMAT, device=self.device)
        scales = torch.empty(len(groups), sum(scale_rows), scale_columns, dtype=torch.float32, device=self.device)
        for names, value_place, scale_place in zip(groups, values, scales, strict=True):
            parts = zip(names, value_place.split_with_sizes(rows), scale_place.split_with_sizes(scale_rows), strict=True)
            for name, value_part, scale_part in parts:
                value_part.copy_(self.source.read(name, tuple(value_part.shape)))
                scale_part.copy_(self.source.read(f"{name}{SCALE_SUFFIX}", tuple(scale_part.shape)))
        return EightBitMatrix(values, scales)
