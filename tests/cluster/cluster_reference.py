"""One process without transfer: what a cluster's answers are compared with."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from pathlib import Path

from cluster_clients import Answer, Ask

from engine.config import EngineConfig
from engine.engine import Engine
from engine.logprobs import TokenLogprobs
from engine.sequence import Sequence
from telemetry.metrics import Metrics

TIE = 1e-4
"""float32 sums in another order differ by less in a logit; two tokens nearer than this are a tie, and either is right."""

TOP = 5


@dataclass
class Expected:
    token_ids: list[int]
    finish: str
    logprobs: list[TokenLogprobs]


class Reference:
    """Steps an engine in the caller's thread; one caller at a time."""

    def __init__(self, model: Path, **settings: object) -> None:
        config = EngineConfig.model_validate({"dtype": "float32", "threads": 1, "kv_memory_bytes": 256 << 20, **settings})
        self._engine = Engine.load(model, config, Metrics("prefill", "reference"))

    def answers(self, asks: SequenceOf[Ask]) -> list[Expected]:
        sequences = [
            Sequence(request_id=str(index), prompt=list(ask.prompt), params=replace(ask.params, logprobs=TOP))
            for index, ask in enumerate(asks)
        ]
        for sequence in sequences:
            self._engine.submit(sequence)
        expected: dict[str, Expected] = {str(index): Expected([], "", []) for index in range(len(asks))}
        while not self._engine.is_idle:
            for update in self._engine.step():
                answer = expected[update.request_id]
                answer.token_ids += update.token_ids
                answer.logprobs += update.logprobs
                if update.finish is not None:
                    answer.finish = update.finish
                    self._engine.release(update.sequence)
        return [expected[str(index)] for index in range(len(asks))]

    def assert_same(
        self, asks: SequenceOf[Ask], answers: SequenceOf[Answer], expected: SequenceOf[Expected] | None = None
    ) -> int:
        """Token for token. Where the answers part at a tie of two logits, the rest is compared with what follows the cluster's
        choice. Returns how many such ties there were."""
        ties = 0
        for ask, answer, wanted in zip(asks, answers, expected or self.answers(asks), strict=True):
            ties += self._assert_same(ask, answer, wanted)
        return ties

    def _assert_same(self, ask: Ask, answer: Answer, wanted: Expected) -> int:
        where = f"prompt of {len(ask.prompt)} tokens: cluster {answer.token_ids}, one process {wanted.token_ids}"
        if answer.token_ids == wanted.token_ids:
            assert answer.finish == wanted.finish, where
            return 0
        pairs = enumerate(zip(answer.token_ids, wanted.token_ids, strict=False))
        parting = next((index for index, (got, want) in pairs if got != want), None)
        assert parting is not None, f"the lengths differ; {where}"
        got, logprobs = answer.token_ids[parting], wanted.logprobs[parting]
        gap = logprobs.top[0][1] - dict(logprobs.top).get(got, float("-inf"))
        assert ask.params.is_greedy and gap < TIE, f"token {parting} is wrong by {gap:g} in its logit; {where}"
        done = parting + 1
        if done == ask.params.max_tokens:
            return 1
        rest = Ask((*ask.prompt, *answer.token_ids[:done]), replace(ask.params, max_tokens=ask.params.max_tokens - done))
        rest_of_answer = replace(answer, token_ids=answer.token_ids[done:])
        if not rest_of_answer.token_ids:  # the tie was between an end token and another
            assert answer.finish == "stop", where
            return 1
        return 1 + self._assert_same(rest, rest_of_answer, self.answers([rest])[0])
