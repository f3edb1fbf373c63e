"""A drafter that is as often right as a test wants it to be."""

import random
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import torch

from engine.batch import Batch
from engine.models.base import OnLayer
from engine.recent_steps import RecentSteps
from engine.sequence import Sequence
from engine.speculation.verify import Verified
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine


class Foreseeing:
    """A Drafter that knows the answers, and errs now and then."""

    name = "foreseeing"
    needs_hidden = False

    def __init__(self, answers: Mapping[str, SequenceOf[int]], *, right: float, seed: int = 0, vocabulary: int = 260) -> None:
        """`answers` by request id. `right`: how likely each guess is right."""
        self._answers = answers
        self._right = right
        self._random = random.Random(seed)
        self._vocabulary = vocabulary

    def launch(
        self, batch: Batch, hidden: torch.Tensor | None, verified: Verified | None, on_layer: OnLayer | None
    ) -> torch.Tensor | None:
        return None

    def guess(self, sequence: Sequence, limit: int, launched: SequenceOf[int]) -> SequenceOf[int]:
        begin = len(sequence.output)
        rest = self._answers.get(sequence.request_id, ())[begin : begin + limit]
        known = [token if self._random.random() < self._right else self._random.randrange(self._vocabulary) for token in rest]
        beyond = [self._random.randrange(self._vocabulary) for _ in range(limit - len(known))]
        return [*known, *beyond][: self._random.randint(0, limit)]


def foreseeing_engine(
    make_engine: MakeEngine,
    answers: Mapping[str, SequenceOf[int]],
    *,
    right: float = 0.7,
    seed: int = 0,
    costs: tuple[float, float] = (0.0, 0.0),
    **config: object,
) -> EngineUnderTest:
    """An engine that guesses from `answers`. costs: what its steps are said to take, fixed and per token, in seconds; what is
    tested must not hang on how fast this machine is. Where nothing costs anything every guess is computed."""
    engine = make_engine(**({"speculation": "ngram", "draft_tokens": 6} | config))
    speculation = engine.engine._speculation
    assert speculation is not None
    speculation._drafter = Foreseeing(answers, right=right, seed=seed)
    speculation._recent = Costs(costs)
    return engine


class Costs(RecentSteps):
    """Says what a test says."""

    def __init__(self, decode_cost: tuple[float, float]) -> None:
        super().__init__()
        self._said = decode_cost

    @property
    def decode_cost(self) -> tuple[float, float]:
        return self._said
