"""What rules add to some tokens' logits before anything is drawn: grammar, bias and bans, penalties, in this order.

All of it follows from tokens that are known, or guessed, before the forward pass; so it is made then, on the host, and the logits
need wait for nothing.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from engine.batch import Row
from engine.grammar import Grammars, Matcher

MINUS_INFINITY = float("-inf")

Index = tuple[torch.Tensor, torch.Tensor]


class Adjustments:
    """Those of one step's rows."""

    def __init__(
        self, rows: Sequence[Row], eos_token_ids: frozenset[int], grammars: Grammars | None, device: torch.device
    ) -> None:
        self._eos_token_ids = eos_token_ids
        self._mask: tuple[torch.Tensor, torch.Tensor] | None = None
        biases, bans, repeated, said = (_Places() for _ in range(4))
        for index, row in enumerate(rows):
            params = row.sequence.params
            if params.logit_bias:
                biases.add(index, params.logit_bias.keys(), list(params.logit_bias.values()))
            if row.num_answered < params.min_tokens and row.sequence.matcher is None:
                bans.add(index, self._ends(row), MINUS_INFINITY)
            if params.repetition_penalty != 1.0:
                repeated.add(index, {*row.sequence.tokens, *row.drafts}, float(params.repetition_penalty))
            if row.num_answered and (params.presence_penalty or params.frequency_penalty):
                tokens, counts = np.unique([*row.sequence.output, *row.drafts], return_counts=True)
                said.add(index, tokens.tolist(), (params.presence_penalty + params.frequency_penalty * counts).tolist())
        self._biases, self._bans, self._repeated, self._said = (p.to(device) for p in (biases, bans, repeated, said))
        if grammars is not None:
            self._mask = self._grammar_mask(rows, grammars, device)

    @property
    def is_empty(self) -> bool:
        return not any((self._mask, self._biases, self._bans, self._repeated, self._said))

    def apply_(self, logits: torch.Tensor) -> None:
        """Changes float32 [rows, vocab_size] in place."""
        if self._mask is not None:
            logits.index_add_(0, *self._mask)
        if self._biases is not None:
            places, values = self._biases
            logits.index_put_(places, logits[places] + values)
        if self._bans is not None:
            places, values = self._bans
            logits.index_put_(places, values)
        if self._repeated is not None:
            places, penalties = self._repeated
            seen = logits[places]
            logits.index_put_(places, torch.where(seen > 0, seen / penalties, seen * penalties))
        if self._said is not None:
            places, values = self._said
            logits.index_put_(places, logits[places] - values)

    def _ends(self, row: Row) -> set[int]:
        """What would end its answer, which is too short for it."""
        params = row.sequence.params
        return {*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids)}

    def _grammar_mask(
        self, rows: Sequence[Row], grammars: Grammars, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Which rows, and what to add to theirs. An answer that has left its grammar already is let be: it ends."""
        held: list[int] = []
        asked: list[tuple[Matcher, Sequence[int]]] = []
        for index, row in enumerate(rows):
            matcher = row.sequence.matcher
            if matcher is not None and matcher.error is None:
                held.append(index)
                if row.drafts:
                    asked.pop()  # the same sequence's row before this one, with one guess less
                asked.append((matcher, row.drafts))
        if not held:
            return None
        masks = grammars.masks(asked)
        for mask, index in zip(masks.numpy().view(np.uint32), held, strict=True):
            self._ban_ends(mask, rows[index])
        return torch.tensor(held, device=device), grammars.biases(masks, device)

    def _ban_ends(self, mask: "np.ndarray[tuple[int], np.dtype[np.uint32]]", row: Row) -> None:
        """An answer that ignores its end, or is too short for it, goes on while its grammar allows anything else."""
        params, is_short = row.sequence.params, row.num_answered < row.sequence.params.min_tokens
        if is_short or params.ignore_eos:
            going_on = mask.copy()
            for token in {*self._eos_token_ids, *(params.stop_token_ids if is_short else ())}:
                going_on[token // 32] &= ~np.uint32(1 << token % 32)
            if going_on.any():
                mask[:] = going_on


class _Places:
    """Values for some tokens of some rows."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._tokens: list[int] = []
        self._values: list[float] = []

    def add(self, row: int, tokens: Collection[int], values: Iterable[float] | float) -> None:
        self._rows += [row] * len(tokens)
        self._tokens += tokens
        self._values += [values] * len(tokens) if isinstance(values, float) else values

    def to(self, device: torch.device) -> tuple[Index, torch.Tensor] | None:
        """As (rows, tokens) and values; None where there are none."""
        if not self._rows:
            return None
        rows, tokens = (torch.tensor(part, device=device) for part in (self._rows, self._tokens))
        return (rows, tokens), torch.tensor(self._values, device=device)
