"""What every model's Hugging Face folder says, whatever the family, and how config.json is read."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.rope import Rope
from protocol.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig(ABC):
    """The shapes and constants of one decoder-only model; a family's own are in its subclass."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    checkpoint_dtype: str
    eos_token_ids: frozenset[int]

    @property
    @abstractmethod
    def num_kv_layers(self) -> int:
        """Attentions in the model: each keeps a KV entry per token."""

    @property
    def num_draft_layers(self) -> int:
        """Of the KV layers, the last ones: those of a head that drafts tokens, where it is computed."""
        return 0

    def with_draft_head(self) -> "ModelConfig | None":
        """The same with such a head computed; None where the family has none."""
        return None

    @property
    def history(self) -> int:
        """Tokens before a token that the model must know beside their KV, to embed it."""
        return 0

    @property
    @abstractmethod
    def entry_width(self) -> int:
        """Values that one attention keeps of one token."""

    def kv_bytes_per_token(self, value_bytes: int) -> int:
        """Bytes that all attentions keep of one token, for values of `value_bytes`."""
        return self.num_kv_layers * self.entry_width * value_bytes


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError, one line, where there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"model: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"model: {path} does not hold a JSON object")
    return value


def required(raw: dict[str, Any], name: str) -> int:
    """The positive integer that config.json calls `name`. Raises ConfigError."""
    value = raw.get(name)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"model: config.json's {name} must be a positive integer, not {value!r}")
    return value


def checkpoint_dtype(raw: dict[str, Any], default: str = "float32") -> str:
    """The number format that config.json names; `default` where it names none."""
    return str(raw.get("dtype") or raw.get("torch_dtype") or default)


def refuse_unsupported(raw: dict[str, Any]) -> None:
    """Raises ConfigError for what no model here computes."""
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(f"model: quantized checkpoints are not supported (quantization_config: {method})")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"model: hidden_act {activation} is not supported, only silu")


def eos_token_ids(folder: Path, raw: dict[str, Any]) -> frozenset[int]:
    """What generation_config.json says ends an answer, else config.json."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    value = generation.get("eos_token_id", raw.get("eos_token_id"))
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
