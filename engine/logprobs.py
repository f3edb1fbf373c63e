"""Log-probabilities as OpenAI's API shows them: before any mask, bias, penalty or temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenLogprobs:
    """One token's, and the likeliest ones' in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probabilities, likeliest first."""


@dataclass(frozen=True)
class LogprobTensors:
    """Those of some tokens, still on the device."""

    tokens: torch.Tensor
    """int64 [tokens]"""
    chosen: torch.Tensor
    """[tokens], each token's own."""
    top_ids: torch.Tensor
    """[tokens, widest]"""
    top_values: torch.Tensor
    counts: Sequence[int]
    """Per token, how many of the likeliest are wanted."""

    @classmethod
    def of(cls, logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> "LogprobTensors":
        """Of each row of `logits` [tokens, vocab_size]. Nothing here waits for the device."""
        values = torch.log_softmax(logits.float(), dim=-1)
        top_values, top_ids = values.topk(min(max(counts), values.shape[-1]), dim=-1)
        return cls(tokens, values.gather(1, tokens.unsqueeze(1)).squeeze(1), top_ids, top_values, counts)

    def read(self) -> list[TokenLogprobs]:
        """Waits for the device."""
        tokens, chosen, ids, values = (part.tolist() for part in (self.tokens, self.chosen, self.top_ids, self.top_values))
        return [
            TokenLogprobs(token, chosen[row], tuple(zip(ids[row][:count], values[row][:count], strict=True)))
            for row, (token, count) in enumerate(zip(tokens, self.counts, strict=True))
        ]


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """Of each row of `logits` [tokens, vocab_size]: the token's, and the `counts` likeliest ones'."""
    return LogprobTensors.of(logits, torch.tensor(tokens, device=logits.device), counts).read()
