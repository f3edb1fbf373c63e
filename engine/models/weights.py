"""From a checkpoint's tensors to weights where and as the model computes with them."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import torch

from engine.eight_bit import FORMAT, EightBitMatrix, Matrix
from engine.split.share import WHOLE, Part, Share
from protocol.errors import ConfigError

SCALE_SUFFIX = "_scale_inv"
"""After a quantised matrix's name: what each block of it is multiplied with."""


class TensorSource(Protocol):
    """Tensors by name: a Checkpoint, or a Blueprint that knows only their shapes."""

    def __contains__(self, name: str) -> bool: ...

    def expect(self, names: set[str], ignorable: Callable[[str], bool], elsewhere: AbstractSet[str] = frozenset()) -> None:
        """Raises ConfigError unless it holds exactly `names`, apart from what is `ignorable`. Of them, those `elsewhere` are
        another process's to read."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`; whoever keeps it copies it. Raises ConfigError when its shape is another."""


@dataclass(frozen=True)
class WeightReader:
    """Reads tensors into the model's format and onto its device, 8-bit matrices with block scales too.

    Sizes are those of the stored tensors; a `part` says what of them is kept. Nothing else of them is copied.
    """

    source: TensorSource
    dtype: torch.dtype
    device: torch.device
    weight_block: tuple[int, int] | None = None
    """Rows and columns that share a scale, in a checkpoint with 8-bit matrices."""
    keeps_eight_bit: bool = False
    """Whether `matrix` and `matrices` keep 8-bit ones as they are, where blocks divide them evenly."""
    share: Share = WHOLE
    """What of the model is kept. Whoever reads says which part of a tensor that is."""

    def expect(self, names: set[str], ignorable: Callable[[str], bool], elsewhere: AbstractSet[str] = frozenset()) -> None:
        """As the source's, for `names` with or without scales where there may be scales."""
        scales = {f"{name}{SCALE_SUFFIX}" for name in names} if self.weight_block else set()
        self.source.expect(names, lambda name: name in scales or ignorable(name), elsewhere)

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None, part: Part | None = None) -> torch.Tensor:
        """`dtype`: another than the model's. Raises ConfigError for an 8-bit matrix without scales, or scales without one."""
        return self._stored(name, shape, part).to(self.device, dtype or self.dtype, copy=True)

    def read_into(self, target: torch.Tensor, name: str, part: Part | None = None) -> None:
        """The tensor `name`, or a part of it, of target's shape, in target's format and place. Raises ConfigError as `tensor`."""
        shape = tuple(target.shape)
        target.copy_(self._stored(name, shape if part is None else part.stored_shape(shape), part))

    def _stored(self, name: str, shape: tuple[int, ...], part: Part | None) -> torch.Tensor:
        """As it is in the source, but for an 8-bit matrix, which is widened on the device."""
        tensor = _narrowed(self.source.read(name, shape), part)
        is_quantised = tensor.is_floating_point() and tensor.itemsize == 1
        if is_quantised != (f"{name}{SCALE_SUFFIX}" in self.source):
            raise ConfigError(
                f"model: tensor {name} is {tensor.dtype}, and {name}{SCALE_SUFFIX} is there for 8-bit matrices only"
            )
        return self._dequantised(name, tensor.to(self.device), shape, part) if is_quantised else tensor

    def _dequantised(self, name: str, quantised: torch.Tensor, shape: tuple[int, ...], part: Part | None) -> torch.Tensor:
        """In float32. Blocks at the lower and right edge may be smaller, and a part may begin and end within blocks."""
        if self.weight_block is None or quantised.dim() != 2:
            raise ConfigError(f"model: tensor {name} is {quantised.dtype}, and config.json tells no weight_block_size for it")
        counts = tuple(-(-size // block) for size, block in zip(shape, self.weight_block, strict=True))
        scales = self.source.read(f"{name}{SCALE_SUFFIX}", counts).to(self.device, torch.float32)
        for dim, block in enumerate(self.weight_block):
            first = part.first if part is not None and part.dim == dim else 0
            scales = scales.repeat_interleave(block, dim).narrow(dim, first, quantised.shape[dim])
        return quantised.float() * scales

    def empty(self, *shape: int) -> torch.Tensor:
        """Memory to read several tensors into."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def joined(
        self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, parts: Sequence[Part | None] = ()
    ) -> torch.Tensor:
        """Matrices with the same inputs, [sum of rows, columns]: their products are computed as one. `parts`: of each of them."""
        kept = [_kept((count, columns), part) for count, part in zip_longest(rows, parts)]
        together = self.empty(sum(shape[0] for shape in kept), kept[0][1])
        places = together.split_with_sizes([shape[0] for shape in kept])
        for name, place, part in zip_longest(names, places, parts):
            self.read_into(place, name, part)
        return together

    def matrix(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, part: Part | None = None) -> Matrix:
        """As `joined`, the same part of each, in 8 bits if they are kept so and all of these are."""
        if not self._keeps(names, rows, columns, part):
            return self.joined(names, rows, columns, [part] * len(names))
        together = self._eight_bit([names], rows, columns, part)
        return EightBitMatrix(together.values[0], together.scales[0])

    def matrices(self, groups: Sequence[tuple[str, ...]], rows: tuple[int, ...], columns: int) -> Matrix:
        """[groups, sum of rows, columns]: of each group what `matrix` gives."""
        if all(self._keeps(names, rows, columns, None) for names in groups):
            return self._eight_bit(groups, rows, columns, None)
        together = self.empty(len(groups), sum(rows), columns)
        for names, place in zip(groups, together, strict=True):
            for name, target in zip(names, place.split_with_sizes(rows), strict=True):
                self.read_into(target, name)
        return together

    def _keeps(self, names: tuple[str, ...], rows: tuple[int, ...], columns: int, part: Part | None) -> bool:
        """Raises ConfigError where whole matrices could stay in 8 bits and `part` of them, which ends within a block, could not."""
        if not self.keeps_eight_bit or self.weight_block is None:
            return False
        divides = columns % self.weight_block[1] == 0 and all(count % self.weight_block[0] == 0 for count in rows)
        if not divides or not all(f"{name}{SCALE_SUFFIX}" in self.source for name in names):
            return False
        if part is not None and (part.first % (block := self.weight_block[part.dim]) or part.count % block):
            raise ConfigError(
                f"engine.tensor_parallel_size: {self.share.size} processes would cut {names[0]} within a block of {block} that "
                "shares a scale; choose fewer, or engine.fp8_weights=widen"
            )
        return True

    def _eight_bit(
        self, groups: Sequence[tuple[str, ...]], rows: tuple[int, ...], columns: int, part: Part | None
    ) -> EightBitMatrix:
        """Values and scales as stored, laid side by side like the matrices of `matrices`."""
        assert self.weight_block is not None
        block_rows, block_columns = self.weight_block
        value_shapes = [(count, columns) for count in rows]
        scale_shapes = [(count // block_rows, columns // block_columns) for count in rows]
        scale_names = [tuple(f"{name}{SCALE_SUFFIX}" for name in names) for names in groups]
        scale_part = None if part is None else part.in_blocks_of(self.weight_block[part.dim])
        values = self._as_stored(groups, value_shapes, part, FORMAT)
        return EightBitMatrix(values, self._as_stored(scale_names, scale_shapes, scale_part, torch.float32))

    def _as_stored(
        self, groups: Sequence[tuple[str, ...]], shapes: Sequence[tuple[int, int]], part: Part | None, dtype: torch.dtype
    ) -> torch.Tensor:
        kept = [_kept(shape, part) for shape in shapes]
        rows = [shape[0] for shape in kept]
        together = torch.empty(len(groups), sum(rows), kept[0][1], dtype=dtype, device=self.device)
        for names, place in zip(groups, together, strict=True):
            for name, shape, target in zip(names, shapes, place.split_with_sizes(rows), strict=True):
                target.copy_(_narrowed(self.source.read(name, shape), part))
        return together


def _narrowed(tensor: torch.Tensor, part: Part | None) -> torch.Tensor:
    return tensor if part is None else tensor.narrow(part.dim, part.first, part.count)


def _kept(shape: tuple[int, int], part: Part | None) -> tuple[int, int]:
    return shape if part is None else (part.count, shape[1]) if part.dim == 0 else (shape[0], part.count)
