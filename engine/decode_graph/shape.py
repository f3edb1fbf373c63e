"""Which decode steps can be replayed, and as which: a pure decision.

A replayed step has a fixed number of sequences and of rows for each. What is left over repeats the last row of the sequence, and
the last sequence: it computes once more what is computed anyway, into the same place, so it needs no place of its own and reads no
expert that nobody chose. Nobody reads what it draws.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from engine.batch import Span
from engine.truncation import truncates
from protocol.sampling import SamplingParams

FREE_ROWS = 64
"""Rows of a step that cost about as much as one: what is read, weights and KV, is the same. Beyond, at most half may be repeats."""


class Draws(Enum):
    """How tokens are drawn: each costs more than the one before, by a pass over float64 sums and a sort of the vocabulary."""

    LIKELIEST = "likeliest"
    WHOLE = "whole"
    """From the whole distribution, or the likeliest."""
    TRUNCATED = "truncated"
    """With top_k, top_p or min_p, or without."""


@dataclass(frozen=True)
class StepShape:
    """What cannot change between two replays."""

    sequences: int
    rows_each: int
    """One, and one more for each guess that there may be."""
    draws: Draws

    @property
    def rows(self) -> int:
        return self.sequences * self.rows_each


class StepShapes:
    """Those of one engine."""

    def __init__(self, sizes: Sequence[int], draft_tokens: int, vocab_size: int) -> None:
        """`sizes`: numbers of sequences. `draft_tokens`: the most guesses of one sequence; 0 where nobody guesses."""
        self._sizes = sorted(sizes)
        self._rows = sorted({1, 1 + draft_tokens})
        self._vocab_size = vocab_size

    def every(self) -> list[StepShape]:
        """The largest first: what is captured after it fits into its memory."""
        return [
            StepShape(size, rows, draws) for size in reversed(self._sizes) for rows in reversed(self._rows) for draws in Draws
        ]

    def of(self, spans: Sequence[Span]) -> StepShape | None:
        """The smallest that takes them; None where none does, or most of it would be repeats."""
        if not all(_is_plain(span) for span in spans):
            return None
        sequences = _least(self._sizes, len(spans))
        rows_each = _least(self._rows, max(span.length for span in spans))
        if sequences is None or rows_each is None:
            return None
        shape = StepShape(sequences, rows_each, draws_of((span.sequence.params for span in spans), self._vocab_size))
        is_worth_it = shape.rows <= max(FREE_ROWS, 2 * sum(span.length for span in spans))
        return shape if is_worth_it else None


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4 … and `most`: at most half of a batch repeats."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def draws_of(params: Iterable[SamplingParams], vocab_size: int) -> Draws:
    """What these need."""
    draws = Draws.LIKELIEST
    for each in params:
        if not each.is_greedy:
            if truncates(each, vocab_size):
                return Draws.TRUNCATED
            draws = Draws.WHOLE
    return draws


def _least(choices: Sequence[int], wanted: int) -> int | None:
    """`choices` ascend."""
    return next((choice for choice in choices if choice >= wanted), None)


def _is_plain(span: Span) -> bool:
    """A decode that asks for no more than tokens, by rules that look at nothing but its logits."""
    sequence, params = span.sequence, span.sequence.params
    return (
        span.samples
        and span.length == 1 + len(span.drafts)
        and sequence.matcher is None
        and params.logprobs is None
        and not sequence.wants_prompt_logprobs
        and not params.logit_bias
        and not params.is_penalised
        and len(sequence.output) + span.unread >= params.min_tokens
    )
