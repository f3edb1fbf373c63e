"""The benchmark of LongCat-Flash's parts measures what it says, at small sizes."""

import pytest
import torch

from benchmarks import longcat_kernels
from benchmarks.longcat_kernels import KernelReport, ZeroShare, measure_absorbed, measure_zero_shares, render
from benchmarks.paired import Machine, Paired
from benchmarks.terminal import result_console
from engine.attention import mla
from engine.attention.mla import MlaAttention
from engine.models.moe import MixtureOfExperts

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longcat_kernels, "HIDDEN", 24)
    monkeypatch.setattr(longcat_kernels, "INNER", 8)
    monkeypatch.setattr(longcat_kernels, "LEAST_S", 0.0)


def test_so_many_zero_experts_are_chosen(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    zero_chosen: set[int] = set()
    route = MixtureOfExperts._route

    def noted(self: MixtureOfExperts, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, chosen = route(self, x)
        zero_chosen.update((chosen >= longcat_kernels.REAL).sum(dim=1).tolist())
        return weights, chosen

    monkeypatch.setattr(MixtureOfExperts, "_route", noted)
    shares = measure_zero_shares(5, 2, dtype=torch.float32, device=CPU)
    assert zero_chosen == {0, 4, 8}
    assert [(each.zero_chosen, each.fewer, len(each.call_s.ours)) for each in shares] == [(4, 0, 2), (8, 4, 2)]


def test_both_forms_are_measured(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[str] = []
    for form in ("_absorbed", "_expanded"):
        original = getattr(MlaAttention, form)

        def noted(*given: object, form: str = form, original=original) -> torch.Tensor:  # type: ignore[no-untyped-def]
            forms.append(form)
            return original(*given)  # type: ignore[no-any-return]

        monkeypatch.setattr(MlaAttention, form, noted)
    usual = mla.EXPANDED_FROM
    measured = measure_absorbed(1, 400, 2, dtype=torch.float32, device=CPU)
    assert set(forms) == {"_absorbed", "_expanded"} and usual == mla.EXPANDED_FROM
    assert len(measured.call_s.ours) == len(measured.call_s.theirs) == 2


def test_a_target_is_missed_where_time_does_not_fall() -> None:
    faster, slower = Paired.of([1.0], [2.0]), Paired.of([3.0], [2.0])
    shares = [ZeroShare(tokens=8, zero_chosen=4, fewer=0, call_s=each, than_fewer_s=each) for each in (faster, slower)]
    report = KernelReport(machine=Machine.here(), device="cpu", dtype="bfloat16", threads=1, zero_shares=shares, absorbed=[])
    assert [verdict.met for verdict in report.verdicts()] == [True, False]
    console = result_console()
    with console.capture() as shown:
        console.print(render(report))
    assert "MISSED MoE time, 8 tokens, 4 of 12 experts zero / 0: 1.50" in shown.get()
