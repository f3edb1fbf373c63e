"""One step's work for the device: the target's forward pass, drawing and verifying, then drafting. Nothing between them waits.

What the host has to contribute is made and brought to the device first, what it wants to know is read last, together.
"""

from dataclasses import dataclass

import torch

from engine.answered import Answered
from engine.attention.base import AttentionBackend
from engine.batch import Batch, Span
from engine.kv_pool import KVPool
from engine.models.base import Model, OnHidden, OnLayer
from engine.prompt_logprobs import score_prompts
from engine.sampler import Drawn, Sampler
from engine.speculation.speculation import Speculation
from engine.speculation.verify import Verification, Verified


class ForwardPass:
    """Runs batches of one model over one pool."""

    def __init__(
        self, model: Model, pool: KVPool, attention: AttentionBackend, sampler: Sampler, speculation: Speculation | None
    ) -> None:
        self._model = model
        self._pool = pool
        self._attention = attention
        self._sampler = sampler
        self._speculation = speculation
        self._drafts_from_hidden = speculation is not None and speculation.needs_hidden

    def launch(self, spans: list[Span], on_layer: OnLayer | None) -> "Launched":
        """Computes the spans' KV into the pool and draws tokens. On a GPU it returns before any of that has happened."""
        batch = Batch(spans, self._pool.block_size, self._model.device, shifted=self._drafts_from_hidden)
        plan = self._sampler.plan(batch.sampled, batch.device)
        verification = Verification(batch)
        hidden: list[torch.Tensor] = []
        logits = self._model.forward(batch, self._pool, self._attention, on_layer, self._on_hidden(batch, hidden))
        drawn = verified = guesses = None
        if logits is not None:
            drawn = plan.draw(logits)
            verified = verification.verify(drawn.tokens)
        if self._speculation is not None:
            guesses = self._speculation.launch(batch, hidden[0] if hidden else None, verified, on_layer)
        return Launched(batch, drawn, verified, guesses)

    def _on_hidden(self, batch: Batch, hidden: list[torch.Tensor]) -> OnHidden | None:
        """Where nobody wants the hidden states the model is told so: it may compute in a way that has none."""
        scores = any(span.sequence.wants_prompt_logprobs for span in batch.spans)
        if not scores and not self._drafts_from_hidden:
            return None

        def take(states: torch.Tensor) -> None:
            hidden.append(states)
            if scores:
                score_prompts(self._model, batch, states)

        return take


@dataclass(frozen=True)
class Launched:
    """A forward pass whose results are on the device yet."""

    batch: Batch
    drawn: Drawn | None
    verified: Verified | None
    guesses: torch.Tensor | None

    def read(self) -> list[Answered]:
        """Waits for the device. One per span of `batch.sampled_spans`."""
        if self.drawn is None or self.verified is None:
            return []
        spans = self.batch.sampled_spans
        parts = [self.verified.tokens, self.verified.accepted]
        if self.guesses is not None:
            parts.append(self.guesses.flatten())
        numbers: list[int] = torch.cat(parts).tolist()
        count = len(self.batch.sampled)
        tokens, accepted, guesses = numbers[:count], numbers[count : count + len(spans)], numbers[count + len(spans) :]
        each = len(guesses) // len(spans)
        logprobs = self.drawn.read_logprobs()
        answered, first = [], 0
        for index, (span, holds) in enumerate(zip(spans, accepted, strict=True)):
            rows = range(first, first + holds + 1)
            shown = [logprobs[row] for row in rows if row in logprobs]
            launched = guesses[index * each : (index + 1) * each]
            answered.append(Answered(span, tokens[rows.start : rows.stop], shown, launched))
            first += 1 + len(span.drafts)
        return answered
