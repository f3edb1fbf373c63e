"""One forward pass's input: which tokens of which sequences, guessed ones included, and where their KV goes."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from engine.sequence import Sequence

FEW_TOKENS = 16
"""Up to so many are counted one by one faster than by numpy."""


@dataclass(frozen=True)
class Span:
    """The tokens start ≤ position < end of one sequence, the last of which may be guesses."""

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    """Guesses, for the positions that follow the sequence's known tokens up to `end`."""
    unread: int = 0
    """Tokens before `end` that are drawn by steps whose results were not read when this was decided; only the device has them."""

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def known_end(self) -> int:
        """Where the known tokens in it end."""
        return self.end - len(self.drafts)

    @property
    def samples(self) -> bool:
        """Whether the sequence's last known token is in it, so that new ones are drawn."""
        return self.known_end == len(self.sequence.tokens) + self.unread


UNREAD = 0
"""Stands for a token that only the device has."""


class Row(NamedTuple):
    """A place where a token is drawn: after a sequence's known tokens and these guesses, or tokens that are not read yet."""

    sequence: Sequence
    drafts: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """Of the token that is drawn; 0 is the prompt's first."""
        return len(self.sequence.tokens) + len(self.drafts)

    @property
    def num_answered(self) -> int:
        """Tokens of the answer before it."""
        return len(self.sequence.output) + len(self.drafts)


class Batch:
    """Spans of distinct sequences, laid one after another in every tensor here."""

    def __init__(self, spans: list[Span], block_size: int, device: torch.device, *, shifted: bool = False) -> None:
        """`shifted`: make `next_token_ids` too."""
        self.spans = spans
        self.block_size = block_size
        self.device = device
        token_ids: list[int] = []
        next_token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled_rows: list[int] = []
        self.sampled: list[Row] = []
        """For each of them a token is drawn, in the order of the logits. Those of one sequence follow one another: after its last
        known token, then after each guess."""
        self.sampled_spans: list[Span] = []
        """The spans that they are of."""
        for span in spans:
            tokens = span.sequence.tokens
            token_ids += tokens[span.start : span.known_end]
            token_ids += [UNREAD] * (span.known_end - max(span.start, len(tokens)))
            token_ids += span.drafts
            positions += range(span.start, span.end)
            slots += _slots(span, block_size)
            if span.samples:
                self.sampled_spans.append(span)
                before = (UNREAD,) * span.unread
                self.sampled += [Row(span.sequence, before + span.drafts[:index]) for index in range(len(span.drafts) + 1)]
                sampled_rows += range(len(token_ids) - len(span.drafts) - 1, len(token_ids))
            if shifted:
                next_token_ids += tokens[span.start + 1 : span.known_end + 1]
                next_token_ids += [0] * (len(token_ids) - len(next_token_ids))
        self.num_tokens = len(token_ids)
        self.num_sampled = len(sampled_rows)
        self.token_ids = torch.tensor(token_ids, device=device)
        self.positions = torch.tensor(positions, device=device)
        self.slots = torch.tensor(slots, device=device)
        """Per token, its place in a layer of the pool."""
        self.sampled_rows = torch.tensor(sampled_rows, device=device, dtype=torch.long)
        """Per sampled row, its row among the batch's tokens."""
        self.next_token_ids = torch.tensor(next_token_ids, device=device) if shifted else None
        """Per token, the one that follows it; 0 at the sampled rows, where it is drawn."""


def _slots(span: Span, block_size: int) -> list[int]:
    blocks = span.sequence.blocks
    if span.length <= FEW_TOKENS:
        return [blocks[place // block_size] * block_size + place % block_size for place in range(span.start, span.end)]
    positions = np.arange(span.start, span.end)
    held = np.asarray(blocks)
    slots: list[int] = (held[positions // block_size] * block_size + positions % block_size).tolist()
    return slots
