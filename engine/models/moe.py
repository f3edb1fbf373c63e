"""A mixture of experts, some of which do nothing: the router, and grouped products over tokens sorted by expert."""

from dataclasses import dataclass

import torch
from torch.nn.functional import grouped_mm, linear

from engine.eight_bit import Matrix, widened
from engine.models.expert_tally import ExpertTally
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
    """Of the real experts here: gate_up [experts, 2 * inner, hidden] and down [experts, hidden, inner]."""

    gate_up: Matrix
    down: Matrix


class MixtureOfExperts:
    """Σ weight · expert(x) over each token's `topk` experts; a zero expert is the identity.

    The router computes in float32: softmax over all experts, choice by probability plus correction bias, weight by probability
    alone, times the scaling factor, not renormalised. What a token gives to zero experts is a multiple of itself, added once:
    those assignments enter no matrix product.
    """

    def __init__(
        self,
        router: RouterWeights,
        experts: ExpertWeights,
        tally: ExpertTally | None = None,
        *,
        num_real: int | None = None,
        first: int = 0,
        gives_back: bool = True,
    ) -> None:
        """`tally`, where given, is told of every call.

        Of a split model each process adds its part, all for the same tokens: `experts` are those from number `first` on, of
        `num_real` in all, and one process alone gives back what zero experts do.
        """
        self._router = router
        self._experts = experts
        self._tally = tally
        self._num_own = experts.gate_up.shape[0]
        self._num_real = num_real or self._num_own
        self._first = first
        self._gives_back = gives_back
        self._cuts = router.classifier.device.type == "cpu"
        """Sorted by expert, zero experts and those of other processes come last. On a CPU they are cut off: nothing is gathered
        for them. A GPU would have to be waited for in every layer to know how many they are: there they stay, as rows that no
        grouped product reads.
        (torch's own product waits none the less, but for bfloat16 on compute capability 9.0 and 10.0.)"""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [tokens, hidden] → the same shape, a new tensor."""
        weights, chosen = self._route(x)
        if not self._gives_back:
            return self._compute(x, weights, chosen).to(x.dtype)
        given_back = weights.masked_fill(chosen < self._num_real, 0.0).sum(dim=1, keepdim=True)
        return (self._compute(x, weights, chosen) + x * given_back).to(x.dtype)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights, float32, and expert numbers, both [tokens, topk]."""
        probabilities = linear(x.float(), self._router.classifier).softmax(dim=-1)
        chosen = (probabilities + self._router.correction_bias).topk(self._router.topk, dim=-1, sorted=False).indices
        return probabilities.gather(1, chosen) * self._router.scaling_factor, chosen

    def _compute(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The real experts' part, or those of them that are here, in float32.

        Each assignment has a place of its own until all are summed in the order of the choice: the sum hangs neither on what else
        is in the batch nor on which of a device's threads comes first.
        """
        topk, hidden = self._router.topk, x.shape[1]
        assigned = self._own_first(chosen.flatten())
        is_own = assigned < self._num_own
        ends = self._ends(assigned)
        if self._tally is not None:
            self._tally.add(chosen.flatten() < self._num_real, ends[-1])
        order = assigned.argsort(stable=True)
        if self._cuts:
            order = order[: int(ends[-1])]
        computed = x.new_zeros(assigned.shape[0], hidden, dtype=torch.float32)
        if order.shape[0]:
            results = self._products(x[order // topk], ends) * weights.flatten()[order].unsqueeze(1)
            computed[order] = results if self._cuts else results.masked_fill_(~is_own[order].unsqueeze(1), 0.0)
        return computed.view(-1, topk, hidden).sum(dim=1)

    def _own_first(self, assigned: torch.Tensor) -> torch.Tensor:
        """Expert numbers, turned so that those of the experts here begin with 0."""
        return (assigned - self._first) % self._router.classifier.shape[0] if self._first else assigned

    def _ends(self, assigned: torch.Tensor) -> torch.Tensor:
        """Where the rows of each expert here end, once sorted, [experts]. Counted without asking the device (bincount asks)."""
        counts = torch.zeros(self._router.classifier.shape[0], dtype=torch.int64, device=assigned.device)
        counts.scatter_add_(0, assigned, torch.ones_like(assigned))
        return counts[: self._num_own].cumsum(0).to(torch.int32)

    def _products(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Of each row with its expert, without weight, [rows, hidden]; undefined behind the last end."""
        inner = gated(grouped_mm(rows, widened(self._experts.gate_up, rows.dtype).transpose(1, 2), offs=ends))
        return grouped_mm(inner, widened(self._experts.down, rows.dtype).transpose(1, 2), offs=ends)
