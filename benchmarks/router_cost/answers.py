"""What mock workers answer: words of the served vocabulary, so that a client can tell from the text which token it has got."""

import json
import re
from pathlib import Path

from benchmarks.errors import NotMeasured

_WORD = re.compile("Ġ[a-z]{2,}")
"""A byte-level token that is a space and a lower-case word (`Ġ` stands for the space)."""

MOST_WORDS = 16_384


class Answers:
    """Token `position` of request `number` is word `number + position`, counted round. A request's number is within
    0 .. len - 1; so its first word names it."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        words = sorted((token_id, token[1:]) for token, token_id in vocabulary.items() if _WORD.fullmatch(token))
        self._tokens = [token_id for token_id, _ in words[:MOST_WORDS]]
        self._words = [word for _, word in words[:MOST_WORDS]]
        self._number_of = {word: number for number, word in enumerate(self._words)}

    @classmethod
    def from_folder(cls, folder: Path) -> "Answers":
        """Of a model folder with a byte-level BPE tokenizer. Raises NotMeasured for another one."""
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        answers = cls(model.get("vocab", {}))
        if not len(answers):
            raise NotMeasured(f"{folder}: the tokenizer has no byte-level words")
        return answers

    def __len__(self) -> int:
        return len(self._words)

    def token(self, number: int, position: int) -> int:
        return self._tokens[(number + position) % len(self._tokens)]

    def number(self, first_word: str) -> int | None:
        """The request whose answer begins so."""
        return self._number_of.get(first_word)

    def words(self, number: int, count: int) -> list[str]:
        """The answer, split at its spaces."""
        return [self._words[(number + position) % len(self._words)] for position in range(count)]
