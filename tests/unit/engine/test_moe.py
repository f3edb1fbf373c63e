"""The mixture of experts: what enters its matrix products, and that a token's result is its own."""

import pytest
import torch

from engine.models import moe
from engine.models.expert_tally import ExpertTally, ExpertWork
from engine.models.moe import ExpertWeights, MixtureOfExperts, RouterWeights

REAL, ZERO, TOPK, HIDDEN, INNER = 6, 4, 3, 16, 8


def mixture(correction_bias: torch.Tensor | None = None, tally: ExpertTally | None = None) -> MixtureOfExperts:
    drawn = torch.Generator().manual_seed(0)
    router = RouterWeights(
        classifier=torch.randn(REAL + ZERO, HIDDEN, generator=drawn),
        correction_bias=torch.zeros(REAL + ZERO) if correction_bias is None else correction_bias,
        topk=TOPK,
        scaling_factor=6.0,
    )
    gate_up = torch.randn(REAL, 2 * INNER, HIDDEN, generator=drawn)
    return MixtureOfExperts(router, ExpertWeights(gate_up, torch.randn(REAL, HIDDEN, INNER, generator=drawn)), tally)


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


class TestWithoutWaiting:
    """The form for GPUs, which never asks how many assignments are real: all are rows, and those of zero experts are not read."""

    @pytest.fixture
    def waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Grouped products leave rows behind the last end undefined: here, not a number."""

        def undefined_behind(x: torch.Tensor, weights: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
            result = torch.nn.functional.grouped_mm(x, weights, offs=offs)
            result[int(offs[-1]) :] = float("nan")
            return result

        monkeypatch.setattr(moe, "grouped_mm", undefined_behind)

    @pytest.mark.parametrize(
        "experts", [range(REAL + ZERO), range(REAL), range(REAL, REAL + ZERO)], ids=["all", "real", "zero"]
    )
    def test_the_same_result(self, waiting: None, experts: range) -> None:
        layer, x = mixture(only(experts)), tokens(29)
        cut = layer(x)
        layer._cuts = False
        assert torch.equal(layer(x), cut)

    def test_nobody_looks_at_what_the_device_computes(self) -> None:
        """Shown on tensors that have a shape and no values: any look at one is an error."""
        with torch.device("meta"):
            router = RouterWeights(torch.empty(REAL + ZERO, HIDDEN), torch.empty(REAL + ZERO), TOPK, 6.0)
            gate_up, down = (
                torch.empty(REAL, *shape, dtype=torch.bfloat16) for shape in ((2 * INNER, HIDDEN), (HIDDEN, INNER))
            )
            x = torch.empty(29, HIDDEN, dtype=torch.bfloat16)
        tally = ExpertTally(torch.device("meta"))
        assert MixtureOfExperts(router, ExpertWeights(gate_up, down), tally)(x).shape == x.shape
        with pytest.raises((NotImplementedError, RuntimeError)):
            tally.read()

    def test_zero_experts_are_behind_the_last_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x = mixture(), tokens(29)
        layer._cuts = False
        given: list[tuple[int, int]] = []

        def noted(x: torch.Tensor, weights: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
            given.append((x.shape[0], int(offs[-1])))
            return torch.nn.functional.grouped_mm(x, weights, offs=offs)

        monkeypatch.setattr(moe, "grouped_mm", noted)
        layer(x)
        _, chosen = layer._route(x)
        assert given == [(29 * TOPK, int((chosen < REAL).sum()))] * 2


def test_what_entered_the_products_is_tallied(products: list[int]) -> None:
    tally = ExpertTally(torch.device("cpu"))
    layer = mixture(tally=tally)
    chosen = [layer._route(x)[1] for x in (tokens(40), tokens(3))]
    for count in (40, 3):
        layer(tokens(count))
    real = sum(int((each < REAL).sum()) for each in chosen)
    work = tally.read()
    assert work == ExpertWork(real=real, zero=43 * TOPK - real, product_rows=real)
    assert sum(products) == 2 * work.product_rows, "each row takes part in two products"
    assert work.zero > 0
