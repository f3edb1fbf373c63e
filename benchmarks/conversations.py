"""Conversations that share system prompts: the trace of the placement benchmark. Seeded and pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from pydantic import BaseModel, ConfigDict

from benchmarks.workload import token_prompt


class TraceShape(BaseModel):
    """How many conversations of what lengths, in tokens."""

    model_config = ConfigDict(frozen=True)

    systems: int
    """Different system prompts; each conversation begins with one."""
    users: int
    """Conversations per system prompt."""
    turns: int
    system_tokens: int
    message_tokens: int
    answer_tokens: int

    @property
    def requests(self) -> int:
        return self.systems * self.users * self.turns

    @property
    def prompt_tokens(self) -> int:
        """Of all requests together."""
        per_turn = self.message_tokens + self.answer_tokens
        history = sum(turn * per_turn for turn in range(self.turns))
        return self.systems * self.users * (self.turns * (self.system_tokens + self.message_tokens) + history)

    @property
    def reusable_tokens(self) -> int:
        """Those that some earlier request of the trace had at the same place, were all of it on one worker: each system prompt
        after its first use, and each conversation's history."""
        return self.prompt_tokens - self.systems * self.system_tokens - self.requests * self.message_tokens


@dataclass(frozen=True)
class Conversation:
    """What is said in it beforehand: a turn does not depend on what a model answers, so every run asks the same. The answers in
    the history are made up too, so what a decode worker cached of its own answers is never found."""

    system: list[int]
    messages: list[list[int]]
    answers: list[list[int]]

    def prompts(self) -> Iterator[list[int]]:
        """The prompt of each turn: everything said so far."""
        prompt = list(self.system)
        for message, answer in zip(self.messages, self.answers, strict=True):
            prompt += message
            yield list(prompt)
            prompt += answer


def conversations(shape: TraceShape, seed: str, vocabulary: int) -> list[Conversation]:
    """In the order in which they begin: mixed, so that neighbours have different system prompts."""
    random = Random(seed)
    found = []
    for _ in range(shape.systems):
        system = token_prompt(random, shape.system_tokens, vocabulary)
        for _ in range(shape.users):
            messages = [token_prompt(random, shape.message_tokens, vocabulary) for _ in range(shape.turns)]
            answers = [token_prompt(random, shape.answer_tokens, vocabulary) for _ in range(shape.turns)]
            found.append(Conversation(system, messages, answers))
    random.shuffle(found)
    return found
