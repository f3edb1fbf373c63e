"""Requests drawn from a seed, of every kind that the cluster answers, and what one process answers to them."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from cluster_clients import Ask
from llguidance import LLMatcher

from engine.config import EngineConfig
from engine.engine import Engine
from engine.sequence import Sequence as EngineSequence
from protocol import serval_pb2
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics

TIE = 1e-3
"""Two greedy choices nearer than this in their logits may be exchanged by float32 sums in another order."""

TRIES = 12

JSON_SCHEMA = (
    '{"type":"object","properties":{"name":{"type":"string","maxLength":8},"age":{"type":"integer"}},"required":["name"]}'
)
REGEX = "(yes|no)( [a-z]{2,6}){3,12}"


@dataclass(frozen=True)
class Wanted:
    """One answer as one undisturbed process gives it."""

    token_ids: tuple[int, ...]
    finish: str
    gaps: tuple[float, ...]
    """Per token: how far its logit was above the next one's. Nothing where it was drawn at random."""


@dataclass(frozen=True)
class ChaosAsk:
    """A request. `answers` of them share its prompt, the k-th with seed + k."""

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams
    answers: int = 1
    structure: str = ""
    """What the client sends for `params.grammar`: json_schema or regex."""
    cancel_after: int | None = None
    """Tokens after which the client goes away; 0: at once."""

    def to_proto(self) -> serval_pb2.GenerateRequest:
        sampling = replace(self.params, grammar="").to_proto()
        if self.structure == "json_schema":
            sampling.structured_output.json_schema = JSON_SCHEMA
        elif self.structure == "regex":
            sampling.structured_output.regex = REGEX
        return serval_pb2.GenerateRequest(token_ids=serval_pb2.TokenIds(ids=self.prompt), sampling=sampling, n=self.answers)

    def single(self, index: int) -> Ask:
        """Its answer number `index`, as one request of the engine."""
        return Ask(self.prompt, replace(self.params, seed=self.params.seed + index))


@functools.cache
def grammar_of(structure: str) -> str:
    """As the router makes it (router/structured_output.py)."""
    if structure == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(JSON_SCHEMA, defaults={"whitespace_flexible": False}))
    return str(LLMatcher.grammar_from_regex(REGEX))


def plain_ask(draw: Random, number: int) -> ChaosAsk:
    """Greedy or seeded, of mixed lengths, to its last token."""
    prompt = tuple(draw.randrange(256) for _ in range(draw.choice((20, 60, 150, 400))))
    params = SamplingParams(temperature=0.0, max_tokens=draw.randint(20, 150), ignore_eos=True)
    if draw.random() < 0.5:
        params = replace(params, temperature=0.8, top_p=0.95, seed=draw.randrange(2**40))
    return ChaosAsk(number, prompt, params)


def mixed_ask(draw: Random, number: int, prefixes: Sequence[tuple[int, ...]]) -> ChaosAsk:
    """Of every kind: half begin as others do, some are cut, some are held to a grammar, some ask for several answers."""
    head = draw.choice(prefixes) if draw.random() < 0.5 else ()
    prompt = head + tuple(draw.randrange(256) for _ in range(draw.choice((1, 17, 50, 120, 300))))
    params = SamplingParams(temperature=0.0, max_tokens=draw.choice((1, 2, 8, 20, 60)), ignore_eos=draw.random() < 0.7)
    kind = draw.random()
    if kind < 0.35:
        params = replace(params, temperature=draw.choice((0.5, 1.0)), top_p=draw.choice((0.9, 1.0)), seed=draw.randrange(2**40))
    if draw.random() < 0.15:
        params = replace(params, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1)
    if draw.random() < 0.15:
        params = replace(params, logprobs=3)
    ask = ChaosAsk(number, prompt, params)
    if draw.random() < 0.12:
        structure = draw.choice(("json_schema", "regex"))
        params = replace(params, grammar=grammar_of(structure), ignore_eos=False, max_tokens=max(30, params.max_tokens))
        ask = replace(ask, params=params, structure=structure)
    if draw.random() < 0.1:
        ask = replace(ask, answers=draw.choice((2, 3)))
    if draw.random() < 0.1:
        ask = replace(ask, cancel_after=draw.choice((0, 1, 5, 15)))
    return ask


class OneProcess:
    """An engine by itself, with no transfer, no prefix cache and small steps: steps in the caller's thread."""

    def __init__(self, model: Path) -> None:
        config = EngineConfig(
            dtype="float32",
            threads=1,
            kv_memory_bytes=256 << 20,
            max_batch_tokens=512,
            prefix_cache=False,
            speculation="off",
        )
        self._engine = Engine.load(model, config, Metrics("prefill", "reference"))
        self.ties = 0
        """Answers that parted from this process's where either choice is right."""

    def answers(self, asks: Sequence[Ask]) -> list[Wanted]:
        """Computed together."""
        return self._go_on([(ask, ()) for ask in asks])

    def difference(self, ask: Ask, got: Sequence[int], wanted: Wanted, *, is_whole: bool) -> str | None:
        """What is wrong with an answer, None where nothing is. One that was cut is compared as far as it goes. Where an answer
        parts from this process's at a tie, it is compared with what follows its own choice."""
        parting = next((at for at, (a, b) in enumerate(zip(got, wanted.token_ids, strict=False)) if a != b), None)
        if parting is None:
            if len(got) > len(wanted.token_ids) or (is_whole and len(got) != len(wanted.token_ids)):
                return f"{len(got)} tokens where one process has {len(wanted.token_ids)}"
            return None
        if not self._is_tie(ask, tuple(got[: parting + 1]), wanted):
            return f"token {parting} is {got[parting]}, not {wanted.token_ids[parting]}"
        self.ties += 1
        if parting + 1 >= ask.params.max_tokens:
            return None
        return self.difference(ask, got, self._go_on([(ask, tuple(got[: parting + 1]))])[0], is_whole=is_whole)

    def _is_tie(self, ask: Ask, got: tuple[int, ...], wanted: Wanted) -> bool:
        """Greedy: the two logits are as good as equal. At random: this process draws either one, depending on whom it computes
        the request with, since sums in another order move probabilities by a millionth."""
        parting = len(got) - 1
        if wanted.gaps:
            return wanted.gaps[parting] < TIE
        draw = Random(f"company of {ask.params.seed}")
        for _ in range(TRIES):
            company = [
                Ask.greedy([draw.randrange(256) for _ in range(draw.randint(1, 400))], 4) for _ in range(draw.randint(1, 9))
            ]
            *_, again = self._go_on([*((one, ()) for one in company), (ask, got[:-1])])
            if again.token_ids[parting : parting + 1] == got[-1:]:
                return True
        return False

    def _go_on(self, asks: Sequence[tuple[Ask, tuple[int, ...]]]) -> list[Wanted]:
        """Each from the tokens of its answer that are given. Their gaps are not known."""
        sequences = [
            EngineSequence(
                str(number),
                list(ask.prompt),
                replace(ask.params, logprobs=max(2, ask.params.logprobs or 0)),
                output=list(known),
            )
            for number, (ask, known) in enumerate(asks)
        ]
        for sequence in sequences:
            self._engine.prepare(sequence)
            self._engine.submit(sequence)
        finishes: dict[str, str] = {}
        gaps: dict[str, list[float]] = {one.request_id: [math.inf] * len(one.output) for one in sequences}
        while not self._engine.is_idle:
            for update in self._engine.step():
                gaps[update.request_id] += [each.top[0][1] - each.top[1][1] for each in update.logprobs]
                if update.finish is not None:
                    finishes[update.request_id] = update.finish
                    self._engine.release(update.sequence)
        return [
            Wanted(tuple(one.output), finishes[one.request_id], tuple(gaps[one.request_id]) if one.params.is_greedy else ())
            for one in sequences
        ]
