"""One forward pass's input: which tokens of which sequences, and where their KV goes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from engine.sequence import Sequence


@dataclass(frozen=True)
class Span:
    """The tokens start ≤ position < end of one sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def samples(self) -> bool:
        """Whether the sequence's last known token is in it, so that a new one is drawn."""
        return self.end == len(self.sequence.tokens)


class Batch:
    """Spans of distinct sequences, laid one after another in every tensor here."""

    def __init__(self, spans: list[Span], block_size: int, device: torch.device) -> None:
        self.spans = spans
        self.block_size = block_size
        self.device = device
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for span in spans:
            token_ids += span.sequence.tokens[span.start : span.end]
            positions += range(span.start, span.end)
            slots += _slots(span, block_size)
        self.num_tokens = len(token_ids)
        self.token_ids = torch.tensor(token_ids, device=device)
        self.positions = torch.tensor(positions, device=device)
        self.slots = torch.tensor(slots, device=device)
        """Per token, its place in a layer of the pool."""
        self.sampled = [span.sequence for span in spans if span.samples]
        """The sequences for which a token is drawn, in the order of the logits."""

    @cached_property
    def sampled_rows(self) -> torch.Tensor:
        """Per sampled sequence, the row of its last token."""
        ends = np.cumsum([span.length for span in self.spans]) - 1
        rows = [int(end) for span, end in zip(self.spans, ends, strict=True) if span.samples]
        return torch.tensor(rows, device=self.device)


def _slots(span: Span, block_size: int) -> list[int]:
    blocks = span.sequence.blocks
    if span.length == 1:
        return [blocks[span.start // block_size] * block_size + span.start % block_size]
    positions = np.arange(span.start, span.end)
    held = np.asarray(blocks)
    slots: list[int] = (held[positions // block_size] * block_size + positions % block_size).tolist()
    return slots
