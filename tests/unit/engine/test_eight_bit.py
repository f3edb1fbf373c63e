"""Matrices in 8 bits: what they stand for, and the product on Hopper, with what its kernel is documented to do in its place."""

from typing import Any

import pytest
import torch
from torch.nn.functional import ScalingType, linear

from engine import eight_bit
from engine.eight_bit import FORMAT, EightBitLinear, EightBitMatrix, quantised


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """With rows and columns of very different sizes: one scale for all would not do."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 2, shape[-1]) * torch.logspace(0, 3, shape[0]).unsqueeze(1)
    return torch.randn(shape, generator=generator) * sizes


def matrix(rows: int, columns: int, block: tuple[int, int] = (128, 128), seed: int = 1) -> EightBitMatrix:
    blocks = drawn(rows, columns, seed=seed).unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    values = (blocks / scales[:, None, :, None]).to(FORMAT)
    return EightBitMatrix(values.flatten(2, 3).flatten(0, 1), scales)


def scaled_mm_as_documented(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, recipe_a: Any, scale_b: torch.Tensor, recipe_b: Any, **kind: Any
) -> torch.Tensor:
    """torch.nn.functional.scaled_mm of 1x128 by 128x128 blocks, with the layouts that cuBLASLt asks for. torch's own check of
    shapes and strides runs too, on the meta device."""
    assert (recipe_a, recipe_b) == (ScalingType.BlockWise1x128, ScalingType.BlockWise128x128)
    metas = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (a, b, scale_a, scale_b)]
    checked = torch.nn.functional.scaled_mm(metas[0], metas[1], metas[2], recipe_a, metas[3], recipe_b, **kind)
    (rows, columns), outputs = a.shape, b.shape[1]
    assert a.is_contiguous() and b.t().is_contiguous() and rows % 4 == 0
    assert scale_a.stride(0) == scale_b.stride(0) == 1 and scale_b.shape[0] % 4 == 0
    left = a.float().unflatten(1, (-1, 128)) * scale_a.unsqueeze(-1)
    right = b.float().unflatten(0, (-1, 128)).unflatten(2, (-1, 128)) * scale_b[: columns // 128, None, :, None]
    result = left.flatten(1) @ right.flatten(2, 3).flatten(0, 1)
    assert checked.shape == result.shape == (rows, outputs)
    return result.to(kind["output_dtype"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [(128, 128), (32, 64)])
def test_a_matrix_stands_for_values_times_scales(dtype: torch.dtype, block: tuple[int, int]) -> None:
    eight = matrix(256, 384, block)
    assert eight.block == block
    scales = eight.scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    expected = (eight.values.float() * scales).to(dtype)
    assert torch.equal(eight.widened(dtype), expected)
    stacked = EightBitMatrix(torch.stack([eight.values] * 3), torch.stack([eight.scales] * 3))
    assert torch.equal(stacked.widened(dtype), torch.stack([expected] * 3)), "as many matrices at once as there are experts"


def test_without_a_product_in_8_bits_the_matrix_is_widened() -> None:
    eight, x = matrix(256, 384), drawn(5, 384)
    assert torch.equal(EightBitLinear(eight)(x), linear(x, eight.widened(torch.float32)))


def test_activations_keep_their_size_in_each_block() -> None:
    x = drawn(8, 512)
    x[3, 128:256] = 0
    values, scales = quantised(x)
    assert scales.stride() == (1, 8)
    restored = (values.float().unflatten(1, (-1, 128)) * scales.unsqueeze(-1)).flatten(1)
    largest = x.unflatten(1, (-1, 128)).abs().amax(dim=-1, keepdim=True).expand(-1, -1, 128).flatten(1)
    # Three bits after the point, so at most a sixteenth of the value; below 2⁻⁶ of 448 steps of 2⁻⁹ of it.
    assert ((restored - x).abs() <= torch.maximum(x.abs() / 16, largest / 448 * 2**-10)).all()
    assert (restored[3, 128:256] == 0).all()


@pytest.mark.parametrize(("tokens", "columns"), [(1, 128), (5, 384), (8, 512), (7, 640)])
def test_the_product_on_hopper(monkeypatch: pytest.MonkeyPatch, tokens: int, columns: int) -> None:
    monkeypatch.setattr(eight_bit, "scaled_mm", scaled_mm_as_documented)
    monkeypatch.setattr(eight_bit, "multiplies", lambda weight: True)
    eight, x = matrix(256, columns), drawn(tokens, columns)
    values, scales = quantised(x)
    rounded = (values.float().unflatten(1, (-1, 128)) * scales.unsqueeze(-1)).flatten(1)
    expected = rounded.double() @ eight.widened(torch.float32).double().t()
    result = EightBitLinear(eight)(x)
    assert result.shape == (tokens, 256)
    assert torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    exact = x.double() @ eight.widened(torch.float32).double().t()
    assert (result - exact).norm() < 0.05 * exact.norm(), "activations lose no more than 8 bits take"
    assert not torch.equal(result.double(), exact)


def test_a_cpu_does_not_multiply_in_8_bits() -> None:
    assert not eight_bit.multiplies(matrix(128, 128))
