"""Text to tokens and back, by the `tokenizers` library alone.

The folder's tokenizer.json is the whole truth about the tokens. transformers' AutoTokenizer would give the same ids, but
importing it costs seconds and pulls in torch; a test holds the two against each other.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from protocol.errors import ConfigError, InvalidRequest
from router.chat_template import ChatTemplate
from router.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"
_MAX_PENDING_TOKENS = 64


class TextTokenizer:
    """A model's tokenizer and chat template. Encoding is thread-safe; long prompts are encoded in a thread."""

    def __init__(self, tokenizer: Any, chat_template: ChatTemplate | None, long_prompt_characters: int = 2048) -> None:
        self.backend = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.token_bytes = TokenBytes(tokenizer)
        self._chat_template = chat_template
        self._long_prompt_characters = long_prompt_characters
        self._longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)

    @classmethod
    def from_folder(cls, folder: Path, long_prompt_characters: int = 2048) -> "TextTokenizer":
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(
                f"model_dir: {folder} has no tokenizer.json; save the tokenizer with transformers' save_pretrained"
            )
        try:
            backend = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"model_dir: {file} cannot be read: {error}") from error
        return cls(backend, ChatTemplate.from_folder(folder), long_prompt_characters)

    async def encode(self, text: str, max_tokens: int, add_special_tokens: bool = True) -> list[int]:
        """Token ids. Raises InvalidRequest without tokenising when `text` is certainly longer than `max_tokens`."""
        if len(text) > max_tokens * self._longest_token:
            raise InvalidRequest(f"the prompt has {len(text)} characters: more than a context of {max_tokens} tokens can hold")
        if len(text) <= self._long_prompt_characters:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a prompt, special tokens and all."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=False))

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> list[int]:
        """The chat template's tokens; the template writes its own special tokens."""
        if self._chat_template is None:
            raise InvalidRequest("messages: the model has no chat template; use /v1/completions", "messages")
        return await self.encode(self._chat_template.render(messages), max_tokens, add_special_tokens=False)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)


class Detokenizer:
    """Turns one answer's tokens into text, never splitting a character: an incomplete one is held until it is whole.

    Special tokens have no text. The pieces concatenated are the decoded answer, without an incomplete last character.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._backend = tokenizer.backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; often empty."""
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

    def flush(self) -> str:
        """The whole characters still held, at the end of the answer."""
        return self._decode_pending().rstrip(REPLACEMENT)

    def _restart(self) -> str:
        text = self._decode_pending()
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context, self._pending = [], []
        return text

    def _decode_pending(self) -> str:
        before = self._backend.decode(self._context, skip_special_tokens=True)
        whole = self._backend.decode(self._context + self._pending, skip_special_tokens=True)
        return str(whole[len(before) :])
