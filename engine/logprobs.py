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


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """Of each row of `logits` [tokens, vocab_size]: the token's, and the `counts` likeliest ones'."""
    values = torch.log_softmax(logits.float(), dim=-1)
    widest = min(max(counts), values.shape[-1])
    top_values, top_ids = (part.tolist() for part in values.topk(widest, dim=-1))
    chosen = values.gather(1, torch.tensor(tokens, device=values.device).unsqueeze(1)).squeeze(1).tolist()
    return [
        TokenLogprobs(token, chosen[row], tuple(zip(top_ids[row][:count], top_values[row][:count], strict=True)))
        for row, (token, count) in enumerate(zip(tokens, counts, strict=True))
    ]
