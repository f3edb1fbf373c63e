"""Tokens to text, as they come: no character is ever split.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) need no library for it: a token is its bytes, and text is UTF-8. That takes a
hundredth of the time of `tokenizers`' own stream, whose result it equals (tests/unit/router/test_router_text.py). Other
vocabularies go through that stream.
"""

import codecs
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

from router.text.token_bytes import BYTE_OF_CHARACTER

REPLACEMENT = "\ufffd"
_MAX_PENDING_TOKENS = 64


class Detokenizer(Protocol):
    """Turns one answer's tokens into text. Special tokens have none. The pieces concatenated are the decoded answer, without an
    incomplete last character."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; may be empty. An incomplete character is held until it is whole."""

    def flush(self) -> str:
        """The whole characters still held, at the end of the answer."""


class ByteLevelVocabulary(dict[int, bytes]):
    """The bytes that each token stands for in an answer; found out when a token is first asked for."""

    def __init__(self, tokenizer: Any, special: Iterable[int]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special = frozenset(special)

    @classmethod
    def of(cls, tokenizer: Any) -> "ByteLevelVocabulary | None":
        """None where the tokenizer decodes in another way."""
        description = json.loads(tokenizer.to_str())
        if (description.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        return cls(tokenizer, (token["id"] for token in description.get("added_tokens", []) if token["special"]))

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._special else self._tokenizer.id_to_token(token_id)
        known = self[token_id] = b"" if token is None else _bytes_of(token)
        return known


def _bytes_of(token: str) -> bytes:
    """As `tokenizers` has it: a token with any character that stands for no byte (an added one) is its own text."""
    values = [BYTE_OF_CHARACTER.get(character) for character in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


class ByteLevelDetokenizer:
    """A Detokenizer of a byte-level vocabulary."""

    def __init__(self, vocabulary: ByteLevelVocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        vocabulary = self._vocabulary
        return self._decoder.decode(b"".join([vocabulary[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        return ""  # only an incomplete character is ever held


class StreamDetokenizer:
    """A Detokenizer of any vocabulary that `tokenizers` can decode.

    That library shows broken bytes as U+FFFD too, so an answer that ends with a U+FFFD of its own loses it here.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([self._push(token_id) for token_id in token_ids])

    def flush(self) -> str:
        return self._decode_pending().rstrip(REPLACEMENT)

    def _push(self, token_id: int) -> str:
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception:  # bare Exception: the library lost its place, which it does on rare byte sequences
            return self._restart()
        if text is not None:
            self._context, self._pending = self._pending, []
            return str(text)
        # A character has at most four bytes: a run this long is not one, and holding it would cost ever more.
        return self._restart() if len(self._pending) >= _MAX_PENDING_TOKENS else ""

    def _restart(self) -> str:
        text = self._decode_pending()
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context, self._pending = [], []
        return text

    def _decode_pending(self) -> str:
        before = self._backend.decode(self._context, skip_special_tokens=True)
        whole = self._backend.decode(self._context + self._pending, skip_special_tokens=True)
        return str(whole[len(before) :])
