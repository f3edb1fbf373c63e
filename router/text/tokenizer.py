"""Text to tokens and back, by the `tokenizers` library alone.

The folder's tokenizer.json is the whole truth about the tokens. transformers' AutoTokenizer would give the same ids, but
importing it costs seconds and pulls in torch; a test holds the two against each other.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from protocol.errors import ConfigError, InvalidRequest
from router.text.chat_template import ChatTemplate
from router.text.detokenizer import ByteLevelDetokenizer, ByteLevelVocabulary, Detokenizer, StreamDetokenizer
from router.text.shown_tokens import ShowingDetokenizer
from router.text.token_bytes import TokenBytes
from router.tool_calls.formats import HERMES, ParserName, ToolFormat, format_of
from router.tool_calls.tools import Tool


class TextTokenizer:
    """A model's tokenizer and chat template. Encoding is thread-safe; long prompts are encoded in a thread."""

    def __init__(self, tokenizer: Any, chat_template: ChatTemplate | None, long_prompt_characters: int = 2048) -> None:
        self.backend = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.token_bytes = TokenBytes(tokenizer)
        self._byte_level = ByteLevelVocabulary.of(tokenizer)
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

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], max_tokens: int, tools: Sequence[Tool] = (), form: ToolFormat | None = None
    ) -> list[int]:
        """The chat template's tokens; the template writes its own special tokens. `form`: how calls are written where the
        template knows no tools."""
        if self._chat_template is None:
            raise InvalidRequest("messages: the model has no chat template; use /v1/completions", "messages")
        text = self._chat_template.render(messages, tools, form or HERMES)
        return await self.encode(text, max_tokens, add_special_tokens=False)

    def tool_format(self, name: ParserName) -> ToolFormat | None:
        """How the model writes tool calls; None where tools are refused."""
        return format_of(name, self._chat_template.tool_source if self._chat_template is not None else "")

    def ids_of(self, texts: Sequence[str]) -> dict[str, int]:
        """Those of `texts` that are tokens added to the vocabulary, each as a whole: special ones, or told apart like those."""
        return {
            token.content: token_id
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if token.content in texts
        }

    def detokenizer(self, shown: Mapping[int, str] | None = None) -> Detokenizer:
        """For one answer, in which the special tokens in `shown` have the text given there."""
        byte_level = self._byte_level
        inner: Detokenizer = StreamDetokenizer(self.backend) if byte_level is None else ByteLevelDetokenizer(byte_level)
        return ShowingDetokenizer(inner, shown) if shown else inner

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
