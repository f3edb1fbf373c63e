"""Products with weights that are laid out once: few numbers of tokens reach the kernel, and every row is what it would be alone."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.linear import Linear, can_pack, filled_up

MOST_TOKENS = 512
"""A chunk's default."""


class TokensOfProducts(TorchDispatchMode):
    """Notes how many tokens each packed product is computed for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.mkldnn._linear_pointwise.default:
            self.seen.add(args[0].shape[0])
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def packed(request: pytest.FixtureRequest) -> tuple[Linear, torch.Tensor]:
    if not can_pack(request.param, torch.device("cpu")):
        pytest.skip("this CPU has no packed product of that format")
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).to(request.param)
    return Linear(weight.clone(), packed=True), weight


def test_the_kernel_meets_few_numbers_of_tokens(packed: tuple[Linear, torch.Tensor]) -> None:
    """It keeps machine code of each: of all 512, half a GiB for the products of one layer of a small model."""
    linear, weight = packed
    with TokensOfProducts() as products:
        for tokens in range(1, MOST_TOKENS + 1):
            assert linear(weight.new_ones(tokens, 16)).shape == (tokens, 24)
    assert len(products.seen) <= 56


@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 31, 33, 257])
def test_rows_are_those_of_the_plain_product(packed: tuple[Linear, torch.Tensor], tokens: int) -> None:
    linear, weight = packed
    x = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(2)).to(weight.dtype)
    torch.testing.assert_close(linear(x), x @ weight.T, rtol=2e-2, atol=2e-2 if weight.dtype == torch.bfloat16 else 1e-5)


def test_filled_up_adds_at_most_an_eighth() -> None:
    assert [filled_up(tokens) for tokens in (0, 1, 16, 17, 33, 65, 512, 513)] == [0, 1, 16, 18, 36, 72, 512, 576]
    assert all(tokens <= filled_up(tokens) <= tokens * 9 / 8 for tokens in range(1, 5000))
