"""An engine's decode steps that can be replayed."""

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import torch

from engine.batch import Span
from engine.decode_graph.block_rows import BlockRows
from engine.decode_graph.graph import StepGraph
from engine.decode_graph.inputs import StepInputs
from engine.decode_graph.replayed import Replayed
from engine.decode_graph.shape import StepShapes
from engine.decode_graph.step import DecodeStep, StepParts
from engine.launched import Launched

logger = logging.getLogger(__name__)


class StepGraphs:
    """One DecodeStep per shape. They never run at the same time, so they share what memory they need, and block tables."""

    def __init__(self, parts: StepParts, shapes: StepShapes, max_model_len: int) -> None:
        self._shapes = shapes
        pool, vocab_size = parts.pool, parts.model.config.vocab_size
        every = shapes.every()
        sequences, width = every[0].sequences, -(-max_model_len // pool.block_size)
        blocks = torch.zeros(sequences, width, dtype=torch.int32, device=parts.model.device)
        host_blocks = BlockRows(sequences, width)
        inputs = {
            size: StepInputs(
                size[1], blocks[: size[0]], host_blocks, pool.block_size, vocab_size, shifted=parts.drafter is not None
            )
            for size in {(shape.sequences, shape.rows_each) for shape in every}
        }
        self._inputs = {shape: inputs[shape.sequences, shape.rows_each] for shape in every}
        self._steps = {shape: DecodeStep(parts, self._inputs[shape], shape.draws) for shape in every}
        self._graphs = {shape: StepGraph(step) for shape, step in self._steps.items()}

    @torch.inference_mode()
    def capture(self) -> None:
        """Before anybody holds a block: it writes to the pool's first one. Raises RuntimeError where a step cannot be captured."""
        started_s = time.monotonic()
        memory = torch.cuda.graph_pool_handle()
        before = torch.cuda.memory_reserved()
        for graph in self._graphs.values():
            graph.capture(memory)
        torch.cuda.synchronize()
        taken = time.monotonic() - started_s, (torch.cuda.memory_reserved() - before) / (1 << 20)
        logger.info("captured %d CUDA graphs of decode steps in %.1f s; they hold %.0f MiB", len(self._graphs), *taken)

    def launch(self, spans: SequenceOf[Span], after: Launched | None) -> Callable[[], Replayed] | None:
        """The device's work for `spans`, of which the host's part is done; None where they are no step that can be replayed.

        `after`: the pass that draws their tokens, where the host does not know them.
        """
        shape = self._shapes.of(spans)
        if shape is None:
            return None
        inputs, step, graph = self._inputs[shape], self._steps[shape], self._graphs[shape]
        filled = inputs.fill(spans, [] if after is None else after.places_of(spans))

        def compute() -> Replayed:
            inputs.load(filled, None if after is None else after.last_tokens())
            graph.replay()
            return Replayed(step, spans)

        return compute
