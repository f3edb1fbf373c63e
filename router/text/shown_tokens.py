"""Special tokens that have text in one answer, because its tool calls are written with them."""

from collections.abc import Mapping, Sequence

from router.text.detokenizer import Detokenizer


class ShowingDetokenizer:
    """A Detokenizer for which the tokens in `shown` have the text given there; `inner` never sees them."""

    def __init__(self, inner: Detokenizer, shown: Mapping[int, str]) -> None:
        self._inner = inner
        self._shown = shown

    def push(self, token_ids: Sequence[int]) -> str:
        if self._shown.keys().isdisjoint(token_ids):
            return self._inner.push(token_ids)
        return "".join([self._shown.get(token_id) or self._inner.push((token_id,)) for token_id in token_ids])

    def flush(self) -> str:
        return self._inner.flush()
