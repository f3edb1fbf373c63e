"""What the router knows of the served model: limits, end tokens and sampling defaults, from its folder's JSON files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError
from protocol.sampling import SamplingParams

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_DEFAULT_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class ModelInfo:
    """`max_model_len` counts prompt and answer tokens together. `defaults` hold where a request says nothing: OpenAI's, or
    those of the folder's generation_config.json (as vLLM does)."""

    name: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    defaults: SamplingParams
    default_max_tokens: int | None

    @classmethod
    def from_folder(cls, name: str, folder: Path, max_model_len: int | None = None) -> "ModelInfo":
        """Raises ConfigError where the folder does not say what is needed."""
        config = read_json(folder / "config.json")
        if config is None:
            raise ConfigError(f"model_dir: {folder} has no config.json")
        text = config.get("text_config", config)
        context = max_model_len or next((text[key] for key in _CONTEXT_KEYS if text.get(key)), None)
        if context is None:
            raise ConfigError(f"max_model_len: {folder / 'config.json'} names no context length; set one")
        if not text.get("vocab_size"):
            raise ConfigError(f"model_dir: {folder / 'config.json'} names no vocab_size")
        generation = read_json(folder / "generation_config.json") or {}
        given = {key: generation[key] for key in _DEFAULT_KEYS if generation.get(key) is not None}
        return cls(
            name=name,
            max_model_len=int(context),
            vocab_size=int(text["vocab_size"]),
            eos_token_ids=_eos(generation) or _eos(text),
            defaults=SamplingParams(**given),
            default_max_tokens=generation.get("max_new_tokens"),
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no such file; raises ConfigError for anything else."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"model_dir: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model_dir: {path} holds no JSON object")
    return content


def _eos(config: dict[str, Any]) -> frozenset[int]:
    eos = config.get("eos_token_id")
    return frozenset() if eos is None else frozenset(eos if isinstance(eos, list) else [eos])
