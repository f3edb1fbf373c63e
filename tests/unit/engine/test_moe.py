"""The mixture of experts: what enters its matrix products, and that a token's result is its own."""

import pytest
import torch

from engine.models import moe
from engine.models.moe import ExpertWeights, MixtureOfExperts, RouterWeights

REAL, ZERO, TOPK, HIDDEN, INNER = 6, 4, 3, 16, 8


def mixture(correction_bias: torch.Tensor | None = None) -> MixtureOfExperts:
    drawn = torch.Generator().manual_seed(0)
    router = RouterWeights(
        classifier=torch.randn(REAL + ZERO, HIDDEN, generator=drawn),
        correction_bias=torch.zeros(REAL + ZERO) if correction_bias is None else correction_bias,
        topk=TOPK,
        scaling_factor=6.0,
    )
    gate_up = torch.randn(REAL, 2 * INNER, HIDDEN, generator=drawn)
    return MixtureOfExperts(router, ExpertWeights(gate_up, torch.randn(REAL, HIDDEN, INNER, generator=drawn)))


def tokens(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every grouped product."""
    rows: list[int] = []

    def counted(x: torch.Tensor, *args: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] == offs[-1], "a row belongs to no expert"
        rows.append(x.shape[0])
        return torch.nn.functional.grouped_mm(x, *args, offs=offs)

    monkeypatch.setattr(moe, "grouped_mm", counted)
    return rows


def only(experts: range) -> torch.Tensor:
    """A correction bias that lets no others be chosen; it weighs nothing itself."""
    bias = torch.full((REAL + ZERO,), -10.0)
    bias[list(experts)] = 0.0
    return bias


def test_zero_experts_enter_no_product(products: list[int]) -> None:
    layer, x = mixture(), tokens(40)
    layer(x)
    _, chosen = layer._route(x)
    real = int((chosen < REAL).sum())
    assert 0 < real < chosen.numel()
    assert products == [real, real]


def test_zero_experts_alone_compute_nothing(products: list[int]) -> None:
    layer, x = mixture(only(range(REAL, REAL + ZERO))), tokens(5)
    weights, _ = layer._route(x)
    assert torch.allclose(layer(x), x * weights.sum(dim=1, keepdim=True))
    assert products == []


def test_real_experts_alone(products: list[int]) -> None:
    mixture(only(range(REAL)))(tokens(5))
    assert products == [5 * TOPK, 5 * TOPK]


def test_a_token_is_computed_the_same_in_any_company() -> None:
    layer, x = mixture(), tokens(33)
    together = layer(x)
    alone = torch.cat([layer(row.unsqueeze(0)) for row in x])
    assert torch.allclose(together, alone, atol=1e-5)
