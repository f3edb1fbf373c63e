"""From an answer's tokens to the text that may go out: detokenised, and cut at the first stop string."""

from collections.abc import Mapping, Sequence

from router.text.partial_match import possible_beginning
from router.text.tokenizer import TextTokenizer


class StopStrings:
    """Finds stop strings in text that comes in pieces. What could be the beginning of one is held back, so no part of a stop
    string ever goes out. Of several, the one that is complete first counts, however the text was cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may go out now, and whether a stop string was completed (then nothing more may be fed)."""
        if not self._stops:
            return text, False
        buffer = self._held + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if matches:
            self._held = ""
            return buffer[: min(matches)[1]], True
        keep = possible_beginning(buffer, self._stops)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """What was held back, now that nothing can complete it."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """The text of one answer. `released` counts the characters that have been given out, `characters` those decoded. `shown` are
    special tokens that have text in it."""

    def __init__(
        self, tokenizer: TextTokenizer, stops: Sequence[str], min_tokens: int, shown: Mapping[int, str] | None = None
    ) -> None:
        self._detokenizer = tokenizer.detokenizer(shown)
        self._stops = StopStrings(stops)
        self._min_tokens = min_tokens
        self._tokens = 0
        self.characters = 0
        self.released = 0

    def push(self, token_ids: Sequence[int]) -> tuple[str, bool]:
        """Text that may go out now, and whether a stop string was completed. Who must know by which token that was gives one at a
        time."""
        self._tokens += len(token_ids)
        text = self._detokenizer.push(token_ids)
        return self._feed(text) if text else ("", False)

    def finish(self) -> tuple[str, bool]:
        """The rest, at the end of the answer; a stop string may still be completed by it."""
        text, stopped = self._feed(self._detokenizer.flush())
        if not stopped:
            rest = self._stops.flush()
            self.released += len(rest)
            text += rest
        return text, stopped

    def _feed(self, text: str) -> tuple[str, bool]:
        self.characters += len(text)
        # Before min_tokens an answer cannot end, as for end tokens.
        out, stopped = (text, False) if self._tokens < self._min_tokens else self._stops.feed(text)
        self.released += len(out)
        return out, stopped
