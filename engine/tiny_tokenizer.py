"""Byte-level tokenizers of tiny models: any byte is one token, so every text round-trips."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True)
class ByteTokenizer:
    """What a tiny model's tokenizer has beside the bytes. Ids: `before`, the 256 bytes, `after`; all but the bytes are special."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    bos: str
    eos: str
    pad: str
    chat_template: str

    @property
    def vocab_size(self) -> int:
        return len(self.before) + 256 + len(self.after)

    def write(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer loads them."""
        vocabulary = {token: token_id for token_id, token in enumerate((*self.before, *_byte_characters(), *self.after))}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([*self.before, *self.after])
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": self.bos,
                "eos_token": self.eos,
                "pad_token": self.pad,
                "clean_up_tokenization_spaces": False,
                "chat_template": self.chat_template,
            },
        )


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in of each byte, in byte order (the convention of byte-level tokenizers)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [stand_in[byte] for byte in range(256)]


def write_json(path: Path, value: object) -> None:
    """Readable, and the same bytes for the same value."""
    path.write_text(json.dumps(value, indent=2) + "\n")
