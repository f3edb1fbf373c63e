"""One decode step over inputs that stay where they are: target, drawing, verification and draft, as in engine/forward_pass.py.

Nothing in it looks at a number or makes a shape of one: called once under capture, it is the graph of every step of its shape.
"""

from dataclasses import dataclass

import torch

from engine.attention.base import AttentionBackend
from engine.decode_graph.inputs import DrawInputs, StepInputs
from engine.decode_graph.shape import Draws
from engine.kv_pool import KVPool
from engine.models.base import Model
from engine.sampler import draw_at
from engine.speculation.mtp import MtpDrafter
from engine.speculation.verify import accept
from engine.truncation import truncated


@dataclass(frozen=True)
class StepParts:
    """What all steps of an engine compute with."""

    model: Model
    pool: KVPool
    attention: AttentionBackend
    """Over block tables."""
    drafter: MtpDrafter | None
    """Who guesses on the device, if anybody does."""


class DecodeStep:
    """Computes `inputs` into its results."""

    def __init__(self, parts: StepParts, inputs: StepInputs, draws: Draws) -> None:
        self._parts = parts
        self._inputs = inputs
        self._draws = draws
        batch, guesses = inputs.batch, inputs.guesses
        sequences = guesses.shape[0]
        self.rows_each = 1 + guesses.shape[1]
        drafted = 0 if parts.drafter is None else sequences
        self.numbers = torch.zeros(batch.num_tokens + sequences + drafted, dtype=torch.int64, device=batch.device)
        """Tokens of all rows; per sequence how many guesses hold; per sequence a new guess, where they are made here."""
        self.last_tokens = torch.zeros(sequences, dtype=torch.int64, device=batch.device)
        """What was drawn last for each."""
        self._first_rows = torch.arange(sequences, device=batch.device) * self.rows_each
        self._guess_rows = self._first_rows.unsqueeze(1) + torch.arange(guesses.shape[1], device=batch.device)

    def __call__(self) -> None:
        parts, inputs, batch = self._parts, self._inputs, self._inputs.batch
        hidden: list[torch.Tensor] = []
        on_hidden = None if parts.drafter is None else hidden.append
        logits = parts.model.forward(batch, parts.pool, parts.attention, None, on_hidden)
        assert logits is not None
        verified = accept(draw(logits, inputs.draws, self._draws), self._first_rows, self._guess_rows, inputs.guesses)
        results = [verified.tokens, verified.accepted]
        if parts.drafter is not None:
            guesses = parts.drafter.launch(batch, hidden[0], verified, None)
            assert guesses is not None
            results.append(guesses.flatten())
        torch.cat(results, out=self.numbers)
        self.last_tokens.copy_(verified.tokens[verified.last_rows])


def draw(logits: torch.Tensor, rows: DrawInputs, draws: Draws) -> torch.Tensor:
    """int64 [rows]: what SamplingPlan draws by the same rules."""
    likeliest = logits.max(dim=-1).indices
    if draws is Draws.LIKELIEST:
        return likeliest
    scaled = logits.float() / rows.temperatures.float().unsqueeze(1)
    if draws is Draws.TRUNCATED:
        margins, masses = (each.float().unsqueeze(1) for each in (rows.margins, rows.masses))
        scaled = truncated(scaled, margins, rows.limits.unsqueeze(1), masses)
    return torch.where(rows.is_random.bool(), draw_at(scaled, rows.numbers.unsqueeze(1)), likeliest)
