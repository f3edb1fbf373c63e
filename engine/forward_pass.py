"""One step's work for the device: the target's forward pass, drawing and verifying, then drafting. Nothing between them waits.

What the host has to contribute is made and brought to the device first, what it wants to know is read last, together.
"""

from collections.abc import Callable
from concurrent.futures import Future

import torch

from engine.attention.base import AttentionBackend
from engine.batch import Batch, Span
from engine.decode_graph.graphs import StepGraphs
from engine.kv_pool import KVPool
from engine.launch_thread import LaunchThread
from engine.launched import Computed, Launched, Results
from engine.models.base import Model, OnHidden, OnLayer
from engine.prompt_logprobs import score_prompts
from engine.sampler import Sampler, SamplingPlan
from engine.speculation.speculation import Speculation
from engine.speculation.verify import Verification


class ForwardPass:
    """Runs batches of one model over one pool, one after another."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        attention: AttentionBackend,
        sampler: Sampler,
        speculation: Speculation | None,
        thread: LaunchThread | None = None,
        graphs: StepGraphs | None = None,
    ) -> None:
        """`thread`: computes, for a device that does nothing while nobody waits for it. None: the calling thread does.
        `graphs`: the decode steps that are replayed; all others, or all, are computed call by call."""
        self._model = model
        self._pool = pool
        self._attention = attention
        self._sampler = sampler
        self._speculation = speculation
        self._thread = thread
        self._graphs = graphs
        self._drafts_from_hidden = speculation is not None and speculation.needs_hidden

    def launch(self, spans: list[Span], on_layer: OnLayer | None, after: Launched | None = None) -> Launched:
        """Computes the spans' KV into the pool and draws tokens. On a GPU, or with a thread, it returns before any of that has
        happened; what goes wrong then is raised by `Launched.read`.

        `after`: the pass launched last, where the spans' tokens are those that it draws, read or not.
        """
        replay = None if self._graphs is None or on_layer is not None else self._graphs.launch(spans, after)
        if replay is not None:
            return Launched(spans, spans, self._model.device, self._start(replay))
        batch = Batch(spans, self._pool.block_size, self._model.device, shifted=self._drafts_from_hidden)
        plan = self._sampler.plan(batch.sampled, batch.device)
        verification = Verification(batch)
        rows = None if after is None else torch.tensor(after.places_of(spans), device=batch.device)

        def compute() -> Computed | None:
            if after is not None and rows is not None:
                batch.token_ids = after.last_tokens()[rows]
            return self._compute(batch, plan, verification, on_layer)

        return Launched(spans, batch.sampled_spans, batch.device, self._start(compute, here=on_layer is not None))

    def _start(self, compute: Callable[[], Results | None], *, here: bool = False) -> "Future[Results | None]":
        """`here`: in this thread, whatever there is."""
        if self._thread is not None and not here:
            return self._thread.launch(compute)
        computed: Future[Results | None] = Future()
        computed.set_result(compute())
        return computed

    def _compute(
        self, batch: Batch, plan: SamplingPlan, verification: Verification, on_layer: OnLayer | None
    ) -> Computed | None:
        """None where nothing is drawn."""
        hidden: list[torch.Tensor] = []
        logits = self._model.forward(batch, self._pool, self._attention, on_layer, self._on_hidden(batch, hidden))
        drawn = verified = guesses = None
        if logits is not None:
            drawn = plan.draw(logits)
            verified = verification.verify(drawn.tokens)
        if self._speculation is not None:
            guesses = self._speculation.launch(batch, hidden[0] if hidden else None, verified, on_layer)
        return None if drawn is None or verified is None else Computed(drawn, verified, guesses)

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
