"""Engines on a CPU whose decode steps are replayed: by calling again, over the same tensors, what a GPU would capture."""

from collections import Counter

from engine.batch import Span
from engine.decode_graph.choice import step_graphs
from engine.decode_graph.shape import StepShape
from tests.unit.engine.conftest import EngineUnderTest


class Replays:
    """Counts an engine's steps: replayed, by shape, and others."""

    def __init__(self, under_test: EngineUnderTest) -> None:
        engine = under_test.engine
        graphs = step_graphs(engine.config, engine.model, engine.pool, engine._attention, engine.max_model_len)
        engine._forward_pass._graphs = graphs
        self.shapes: Counter[StepShape] = Counter()
        self.others = 0
        choose = graphs._shapes.of

        def of(spans: list[Span]) -> StepShape | None:
            shape = choose(spans)
            if shape is None:
                self.others += 1
            else:
                self.shapes[shape] += 1
            return shape

        graphs._shapes.of = of  # type: ignore[method-assign, assignment]

    @property
    def steps(self) -> int:
        return sum(self.shapes.values())
