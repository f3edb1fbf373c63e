"""Log-probabilities of the prompt's own tokens, as the prompt is computed."""

import torch

from engine.batch import Batch, Span
from engine.logprobs import TokenLogprobs, token_logprobs
from engine.models.base import Model

ROWS_AT_ONCE = 64
"""Positions whose logits exist at a time: 40 MB of float32 for a vocabulary of 150,000."""


def score_prompts(model: Model, batch: Batch, hidden: torch.Tensor) -> None:
    """Appends to `Sequence.prompt_logprobs` what the batch tells about the prompts of those that asked. `hidden`: the last
    layer's residual stream [batch tokens, hidden_size]."""
    first_row = 0
    for span in batch.spans:
        if span.sequence.wants_prompt_logprobs:
            _score(model, span, hidden[first_row : first_row + span.length])
        first_row += span.length


def _score(model: Model, span: Span, hidden: torch.Tensor) -> None:
    prompt, scored = span.sequence.prompt, span.sequence.prompt_logprobs
    if not scored:
        scored.append(TokenLogprobs(prompt[0], 0.0, ()))  # nothing precedes it
    # The hidden state at a position tells the token after it. What was scored before a preemption is not scored again.
    for begin in range(len(scored), min(span.end + 1, len(prompt)), ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, span.end + 1, len(prompt))
        logits = model.logits(hidden[begin - 1 - span.start : end - 1 - span.start])
        counts = [span.sequence.params.prompt_logprobs or 0] * (end - begin)
        scored += token_logprobs(logits, list(prompt[begin:end]), counts)
