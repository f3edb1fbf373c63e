"""min_p, top_k and top_p: each keeps what reaches a threshold on the logits, so that no token depends on how a sort breaks ties."""

import math
from collections.abc import Sequence

import torch

from protocol.sampling import SamplingParams

NUCLEUS_CANDIDATES = 256
"""On a CPU top_p first looks at this many likeliest tokens; only a flatter distribution pays for a sort of the vocabulary."""

MINUS_INFINITY = float("-inf")


def margin_of(params: SamplingParams) -> float:
    """min_p on the logits: how far below the likeliest token's one may lie."""
    return math.log(params.min_p) if params.min_p > 0.0 else MINUS_INFINITY


def limit_of(params: SamplingParams, vocab_size: int) -> int:
    """top_k; 0 where it keeps all."""
    return params.top_k if 0 < params.top_k < vocab_size else 0


def truncates(params: SamplingParams, vocab_size: int) -> bool:
    """Whether any of the three leaves something out."""
    return params.min_p > 0.0 or limit_of(params, vocab_size) > 0 or params.top_p < 1.0


class Truncation:
    """The three rules for the rows of one step. Made before the logits exist: applying it copies nothing to the device."""

    def __init__(self, params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> None:
        self._margins: torch.Tensor | None = None
        self._limits: torch.Tensor | None = None
        self._mass: torch.Tensor | None = None
        self._widest = 0
        # Whether so few candidates are enough is known only once they were looked at, and a GPU would have to be waited for.
        self._sorts_all = device.type != "cpu"
        if any(p.min_p > 0.0 for p in params):
            self._margins = torch.tensor([margin_of(p) for p in params], device=device).unsqueeze(1)
        limits = [limit_of(p, vocab_size) for p in params]
        if any(limits):
            self._widest = max(limits)
            self._limits = torch.tensor(limits, device=device).unsqueeze(1)
        if any(p.top_p < 1.0 for p in params):
            self._mass = torch.tensor([p.top_p for p in params], device=device).unsqueeze(1)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` float32 [rows, vocab_size], divided by the temperature; what is not kept is minus infinity."""
        if self._margins is not None:
            logits = _keep(logits, logits.amax(dim=-1, keepdim=True) + self._margins)
        if self._limits is not None:
            largest = logits.topk(self._widest, dim=-1).values
            threshold = largest.gather(1, (self._limits - 1).clamp_(min=0))
            logits = _keep(logits, threshold.masked_fill_(self._limits == 0, MINUS_INFINITY))
        if self._mass is not None:
            logits = self._keep_nucleus(logits, self._mass)
        return logits

    def _keep_nucleus(self, logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens whose probabilities reach top_p together, the one that crosses it included."""
        normaliser = logits.logsumexp(dim=-1, keepdim=True)
        if not self._sorts_all:
            largest = logits.topk(min(NUCLEUS_CANDIDATES, logits.shape[-1]), dim=-1).values
            reached = (largest - normaliser).exp_().cumsum(dim=-1)
        if self._sorts_all or bool(((reached[:, -1:] < mass) & (mass < 1.0)).any()):
            largest = logits.sort(dim=-1, descending=True).values
            reached = (largest - normaliser).exp_().cumsum(dim=-1)
        return _keep(logits, _crossing(largest, reached, mass))


def truncated(logits: torch.Tensor, margins: torch.Tensor, limits: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """All three rules for every row, with one sort whatever they are: for steps of which nothing may hang on their parameters.

    `logits` as Truncation takes them. [rows, 1] each: `margins` on the largest logit, minus infinity where there is no min_p;
    `limits`, 0 where there is no top_k; `masses`, 1 where there is no top_p.
    """
    logits = _keep(logits, logits.amax(dim=-1, keepdim=True) + margins)
    largest = logits.sort(dim=-1, descending=True).values
    threshold = largest.gather(1, (limits - 1).clamp_(min=0)).masked_fill_(limits == 0, MINUS_INFINITY)
    logits, largest = _keep(logits, threshold), _keep(largest, threshold)
    reached = (largest - logits.logsumexp(dim=-1, keepdim=True)).exp_().cumsum(dim=-1)
    return _keep(logits, _crossing(largest, reached, masses))


def _crossing(largest: torch.Tensor, reached: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The logit at which `reached`, the probabilities of the `largest` added up, comes to `mass`; minus infinity if that is 1."""
    crossing = (reached < mass).sum(dim=-1, keepdim=True).clamp_(max=largest.shape[-1] - 1)
    return largest.gather(1, crossing).masked_fill_(mass == 1.0, MINUS_INFINITY)


def _keep(logits: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(logits < threshold, MINUS_INFINITY)
