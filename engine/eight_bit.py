"""Matrices that stay in 8 bits: float8_e4m3fn with one float32 scale per block, the form of LongCat-Flash-Chat-FP8.

They take half of bfloat16's memory. How they are multiplied:

- **In 8 bits**, on Hopper (compute capability 9.0): activations are quantised as they come, 128 values of a row sharing a scale,
  and torch's scaled_mm adds up in float32. torch 2.13 has this product for no other GPU, and a grouped one for none.
- **Widened** to the activations' format just before, everywhere else, and experts everywhere: the same numbers as if they had been
  widened when they were read, at the price of writing and reading them once more per product.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import ScalingType, linear, pad, scaled_mm

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
BLOCK = 128
"""Values in a row that share a scale, and rows and columns of a matrix that do, where the product is in 8 bits."""
ROWS_MULTIPLE = 4
"""cuBLASLt wants as many rows of activations, and of scales along the inputs."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""For rows of zeros, which would be divided by zero."""


@dataclass(frozen=True)
class EightBitMatrix:
    """values [..., rows, columns] and scales [..., rows / block rows, columns / block columns], which divide evenly."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        return self.values.shape[-2] // self.scales.shape[-2], self.values.shape[-1] // self.scales.shape[-1]

    def widened(self, dtype: torch.dtype) -> torch.Tensor:
        """values · scales, computed in float32 and rounded once; a new tensor."""
        wide = self.values.to(dtype)
        (rows, columns), scales = self.block, self.scales
        blocks = wide.view(*scales.shape[:-1], rows, scales.shape[-1], columns)
        blocks.mul_(scales.unsqueeze(-1).unsqueeze(-3))
        return wide


Matrix = torch.Tensor | EightBitMatrix
"""A weight, or several of one shape."""


def widened(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """In `dtype`, which a plain one has already."""
    return matrix.widened(dtype) if isinstance(matrix, EightBitMatrix) else matrix


class EightBitLinear:
    """y = x Wᵀ for x [tokens, in], like engine.linear.Linear. Keeps the weight in 8 bits."""

    def __init__(self, weight: EightBitMatrix) -> None:
        self._weight = weight
        self._scales = _scales_for_product(weight) if multiplies(weight) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._scales is None:
            return linear(x, self._weight.widened(x.dtype))
        return product(x, self._weight.values, self._scales)


def multiplies(weight: EightBitMatrix) -> bool:
    """Whether torch has the product in 8 bits for this matrix where it lies."""
    if weight.values.device.type != "cuda" or weight.block != (BLOCK, BLOCK):
        return False
    cuda = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return torch.cuda.get_device_capability(weight.values.device) == (9, 0) and cuda >= (12, 9)


def product(x: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor) -> torch.Tensor:
    """x [tokens, in] · weightᵀ, both in 8 bits, in x's format; `weight` [out, in], its scales from `_scales_for_product`."""
    values, scales = quantised(pad(x, (0, 0, 0, -x.shape[0] % ROWS_MULTIPLE)))
    recipes = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128
    result = scaled_mm(values, weight.t(), scales, recipes[0], weight_scales, recipes[1], output_dtype=x.dtype)
    return result[: x.shape[0]]


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, columns] in 8 bits, and a scale per row and 128 columns, [rows, columns / 128], row by row in memory as cuBLASLt
    reads it: x ≈ values · scale."""
    blocks = x.float().view(x.shape[0], -1, BLOCK)
    scales = (blocks.abs().amax(dim=-1) / LARGEST).clamp_(min=SMALLEST_SCALE)
    values = (blocks / scales.unsqueeze(-1)).to(FORMAT).flatten(1)
    return values, scales.t().contiguous().t()


def _scales_for_product(weight: EightBitMatrix) -> torch.Tensor:
    """[columns / 128, rounded up to four, rows / 128], the columns side by side in memory."""
    return pad(weight.scales, (0, -weight.scales.shape[1] % ROWS_MULTIPLE)).t()
