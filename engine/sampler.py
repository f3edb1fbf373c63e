"""From logits to tokens. Order of the rules as in vLLM: grammar, bias and bans, penalties, temperature, min_p, top_k, top_p.

What the rules need is brought to the device by `plan`, before the forward pass; drawing then is tensor work that waits for nothing.
The draw walks the kept tokens in vocabulary order, so that a token never depends on what else is in the batch.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch

from engine.adjustments import Adjustments
from engine.batch import Row
from engine.draws import uniform
from engine.grammar import Grammars
from engine.logprobs import LogprobTensors, TokenLogprobs
from engine.truncation import Truncation


@dataclass(frozen=True)
class Drawn:
    """One token per row, still on the device, and the log-probabilities of those rows that asked for them."""

    tokens: torch.Tensor
    """int64 [rows]"""
    logprobs: LogprobTensors | None
    _with_logprobs: SequenceOf[int]

    def read_logprobs(self) -> dict[int, TokenLogprobs]:
        """By row. Waits for the device."""
        if self.logprobs is None:
            return {}
        return dict(zip(self._with_logprobs, self.logprobs.read(), strict=True))


class Sampler:
    """Stateless: everything follows from the sequence's tokens, the guesses after them, its parameters and its position."""

    def __init__(self, eos_token_ids: frozenset[int], vocab_size: int, grammars: Grammars | None = None) -> None:
        """`grammars`: where the sequences' matchers come from; without it there are none."""
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._grammars = grammars

    def plan(self, rows: SequenceOf[Row], device: torch.device) -> "SamplingPlan":
        """How the rows of one forward pass will be drawn. Those of one sequence follow one another, with one guess more each."""
        return SamplingPlan(rows, Adjustments(rows, self._eos_token_ids, self._grammars, device), self._vocab_size, device)


class SamplingPlan:
    """One step's rules, on the device."""

    def __init__(self, rows: SequenceOf[Row], adjustments: Adjustments, vocab_size: int, device: torch.device) -> None:
        self._adjustments = adjustments
        random = [index for index, row in enumerate(rows) if not row.sequence.params.is_greedy]
        self._has_greedy = len(random) < len(rows)
        self._random = _Random([rows[index] for index in random], vocab_size, device) if random else None
        self._random_rows = torch.tensor(random, device=device) if random and self._has_greedy else None
        self._with_logprobs = [index for index, row in enumerate(rows) if row.sequence.params.logprobs is not None]
        self._counts = [rows[index].sequence.params.logprobs or 0 for index in self._with_logprobs]
        self._logprob_rows = torch.tensor(self._with_logprobs, device=device) if self._with_logprobs else None

    def draw(self, logits: torch.Tensor) -> Drawn:
        """`logits` [rows, vocab_size], in any float format; not changed."""
        tokens = self._choose(logits)
        logprobs = None
        if self._logprob_rows is not None:
            logprobs = LogprobTensors.of(logits[self._logprob_rows], tokens[self._logprob_rows], self._counts)
        return Drawn(tokens, logprobs, self._with_logprobs)

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._adjustments.is_empty:
            logits = logits.float().clone() if logits.dtype == torch.float32 else logits.float()
            self._adjustments.apply_(logits)
        if self._random is None:
            return logits.max(dim=-1).indices
        if self._random_rows is None:
            return self._random.draw(logits.float())
        drawn = self._random.draw(logits[self._random_rows].float())
        return logits.max(dim=-1).indices.index_copy_(0, self._random_rows, drawn)


class _Random:
    """Draws by the inverse of the cumulative distribution, at each row's own random number."""

    def __init__(self, rows: SequenceOf[Row], vocab_size: int, device: torch.device) -> None:
        params = [row.sequence.params for row in rows]
        numbers = [uniform(row.sequence.params.seed, row.position) for row in rows]
        self._temperatures = torch.tensor([p.temperature for p in params], device=device).unsqueeze(1)
        self._numbers = torch.tensor(numbers, dtype=torch.float64, device=device).unsqueeze(1)
        self._truncate = Truncation(params, vocab_size, device)

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` float32, one row each."""
        return draw_at(self._truncate(logits / self._temperatures), self._numbers)


def draw_at(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """One token of each row of float32 [rows, vocab_size], at its number 0 ≤ u < 1, float64 [rows, 1]. Waits for nothing."""
    # float64: the draws' 53 bits keep their meaning over a vocabulary of 150,000.
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, so the first entry above it exists and has a probability greater than 0.
    target = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)
