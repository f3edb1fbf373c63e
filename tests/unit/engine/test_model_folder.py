"""What cannot be served is refused in one line; what can is read as transformers reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.registry import read_model_config
from engine.placement import choose_device, choose_dtype
from engine.tiny import write_tiny_llama
from protocol.errors import ConfigError
from telemetry.metrics import Metrics

SETTINGS = EngineConfig(device="cpu", kv_memory_bytes=1 << 20)


def load(folder: Path, config: EngineConfig = SETTINGS, progress: Callable[[int, int], None] | None = None) -> Engine:
    return Engine.load(folder, config, Metrics("decode", "test"), progress=progress)


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load(folder)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM"]),
        ({"architectures": None}, ["architecture"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantiz", "gptq"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["longrope", "yarn"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, ["llama3", "low_freq_factor"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_hidden_layers": 5}, ["lacks", "model.layers.4", "more"]),
        ({"num_hidden_layers": 3}, ["unexpected", "model.layers.3"]),
        ({"intermediate_size": 96}, ["mlp.gate_proj", "[128, 64]", "[96, 64]"]),
        ({"num_key_value_heads": 3}, ["heads"]),
        ({"attention_bias": True}, ["lacks", "bias"]),
    ],
)
def test_unsupported_models_are_refused(tmp_path: Path, changes: dict[str, Any], names: list[str]) -> None:
    message = refusal(edit(write_tiny_llama(tmp_path), **changes))
    for name in names:
        assert name in message


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    assert "config.json does not exist" in refusal(tmp_path)
    folder = write_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    assert "cannot be read" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "only safetensors" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(folder)


def test_sharded_checkpoint_with_an_index(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    expected = load(folder).model.embedding
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load(folder).model.embedding, expected)
    (folder / "two.safetensors").unlink()
    assert "two.safetensors does not exist" in refusal(folder)


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    folder = edit(write_tiny_llama(tmp_path), architectures=["MistralForCausalLM"], sliding_window=128)
    assert read_model_config(folder).max_position_embeddings == 128
    with pytest.raises(ConfigError, match="max_model_len: 200"):
        load(folder, SETTINGS.model_copy(update={"max_model_len": 200}))
    edit(folder, architectures=["Qwen2ForCausalLM"], use_sliding_window=False)
    assert read_model_config(folder).max_position_embeddings == 8192


def test_progress_counts_tensors(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(write_tiny_llama(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 39) for done in range(1, 40)]


def test_end_of_sequence_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    assert read_model_config(folder).eos_token_ids == {258, 256}
    (folder / "generation_config.json").unlink()
    assert read_model_config(folder).eos_token_ids == {258}
    assert read_model_config(edit(folder, eos_token_id=None)).eos_token_ids == frozenset()


def test_kv_memory_bounds_blocks_and_context(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    block_bytes = 4 * 16 * 64 * 4
    engine = load(folder, SETTINGS.model_copy(update={"kv_memory_bytes": 5 * block_bytes + 1}))
    assert (engine.pool.num_blocks, engine.max_model_len) == (5, 80)
    assert engine.pool.block_bytes * engine.pool.num_layers == block_bytes
    with pytest.raises(ConfigError, match="kv_memory_bytes"):
        load(folder, SETTINGS.model_copy(update={"kv_memory_bytes": block_bytes}))


def test_number_format_and_device(tmp_path: Path) -> None:
    model = read_model_config(write_tiny_llama(tmp_path))
    cpu = torch.device("cpu")
    assert choose_dtype(EngineConfig(), model, cpu) == torch.float32
    assert choose_dtype(EngineConfig(dtype="bfloat16"), model, cpu) == torch.bfloat16
    if not torch.cuda.is_available():
        assert choose_device(EngineConfig()) == cpu
        with pytest.raises(ConfigError, match="cuda"):
            choose_device(EngineConfig(device="cuda"))


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="max_batch_tokens"):
        EngineConfig(max_batch_tokens=4, max_sequences=8)
    with pytest.raises(ValidationError, match="block_sizes"):
        EngineConfig.model_validate({"block_sizes": 3})
