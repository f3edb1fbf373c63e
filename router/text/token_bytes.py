"""One token's bytes, for logprobs: OpenAI lists them so that clients can join characters that tokens split."""

import json
import re
from typing import Any

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Knows byte-level vocabularies (GPT-2, Llama 3, Qwen) and sentencepiece ones with byte fallback (Llama 2, Mistral)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        description = json.loads(tokenizer.to_str())
        self._added = {token["id"]: token["content"] for token in description.get("added_tokens", [])}
        self._is_byte_level = "ByteLevel" in json.dumps(description.get("decoder"))
        self._cache: dict[int, tuple[str, bytes]] = {}

    def of(self, token_id: int) -> tuple[str, bytes]:
        """The token as text (U+FFFD for bytes that are no whole character) and as bytes."""
        known = self._cache.get(token_id)
        if known is None:
            data = self._bytes(token_id)
            known = self._cache[token_id] = (data.decode("utf-8", errors="replace"), data)
        return known

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return str(self._added[token_id]).encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            return bytes(BYTE_OF_CHARACTER[character] for character in token if character in BYTE_OF_CHARACTER)
        if match := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        return str(token).replace("\u2581", " ").encode()


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()
