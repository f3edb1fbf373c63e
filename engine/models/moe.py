"""A mixture of experts, some of which do nothing: the router, and grouped products over tokens sorted by expert."""

from dataclasses import dataclass

import torch
from torch.nn.functional import grouped_mm, linear

from engine.models.mlp import gated


@dataclass(frozen=True)
class RouterWeights:
    """classifier [experts, hidden] and correction bias [experts], both in float32; real experts first, then the zero experts."""

    classifier: torch.Tensor
    correction_bias: torch.Tensor
    topk: int
    scaling_factor: float


@dataclass(frozen=True)
class ExpertWeights:
    """Of the real experts: gate_up [experts, 2 * inner, hidden] and down [experts, hidden, inner]."""

    gate_up: torch.Tensor
    down: torch.Tensor


class MixtureOfExperts:
    """Σ weight · expert(x) over each token's `topk` experts; a zero expert is the identity.

    The router computes in float32: softmax over all experts, choice by probability plus correction bias, weight by probability
    alone, times the scaling factor, not renormalised. What a token gives to zero experts is a multiple of itself, added once:
    those assignments enter no matrix product.
    """

    def __init__(self, router: RouterWeights, experts: ExpertWeights) -> None:
        self._router = router
        self._experts = experts
        self._num_real = experts.gate_up.shape[0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [tokens, hidden] → the same shape, a new tensor."""
        weights, chosen = self._route(x)
        given_back = weights.masked_fill(chosen < self._num_real, 0.0).sum(dim=1, keepdim=True)
        return (self._compute(x, weights, chosen) + x * given_back).to(x.dtype)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights, float32, and expert numbers, both [tokens, topk]."""
        probabilities = linear(x.float(), self._router.classifier).softmax(dim=-1)
        chosen = (probabilities + self._router.correction_bias).topk(self._router.topk, dim=-1, sorted=False).indices
        return probabilities.gather(1, chosen) * self._router.scaling_factor, chosen

    def _compute(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The real experts' part, in float32.

        Each assignment has a place of its own until all are summed in the order of the choice: the sum hangs neither on what else
        is in the batch nor on which of a device's threads comes first.
        """
        topk, hidden = self._router.topk, x.shape[1]
        assigned = chosen.flatten()
        counts = torch.bincount(assigned, minlength=self._num_real)[: self._num_real]
        # Sorted by expert, the zero experts are last: cut off here, before anything is gathered for them.
        order = assigned.argsort(stable=True)[: int(counts.sum())]
        ends = counts.cumsum(0).to(torch.int32)
        computed = x.new_zeros(assigned.shape[0], hidden, dtype=torch.float32)
        if order.shape[0]:
            inner = gated(grouped_mm(x[order // topk], self._experts.gate_up.transpose(1, 2), offs=ends))
            results = grouped_mm(inner, self._experts.down.transpose(1, 2), offs=ends)
            computed[order] = results * weights.flatten()[order].unsqueeze(1)
        return computed.view(-1, topk, hidden).sum(dim=1)
