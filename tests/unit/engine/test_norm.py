"""RmsNorm against its definition."""

import pytest
import torch

from engine.models.norm import RmsNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (5, 96), (3, 4, 96)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_equals_the_definition(dtype: torch.dtype, shape: tuple[int, ...], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * scale + scale).to(dtype)
    weight = torch.rand(96, generator=generator).to(dtype)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    difference = (RmsNorm(weight, 1e-6)(x).double() - exact).abs().max()
    assert difference <= (1e-6 if dtype == torch.float32 else 2**-8) * exact.abs().max()
