"""The shipped tiny LongCat-Flash: deterministic, in the released form, and an answer that hangs on every part of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.tiny_longcat import CONFIG, EOS_TOKEN_ID, TOKENIZER, write_tiny_longcat
from protocol.chat_templates import LONGCAT_CHAT
from router.text.chat_template import ChatTemplate
from router.tool_calls.formats import LONGCAT
from router.tool_calls.tools import Tool
from telemetry.metrics import Metrics
from tests.unit.engine.conftest import EngineUnderTest

PROMPT = [token % 256 for token in range(7, 7 * 120, 7)]


def answer(folder: Path, prompt: list[int] = PROMPT) -> list[int]:
    config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1, check_integrity=True)
    metrics = Metrics("decode", "test")
    return EngineUnderTest(Engine.load(folder, config, metrics), metrics).answer(prompt)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, again, other = (write_tiny_longcat(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    files = sorted(path.name for path in first.iterdir())
    assert sum(path.stat().st_size for path in first.iterdir()) < 5 << 20
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert any((first / name).read_bytes() != (other / name).read_bytes() for name in files if name.endswith("safetensors"))


def test_released_form(tmp_path: Path) -> None:
    write_tiny_longcat(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LongcatFlashForCausalLM"]
    assert "model_type" not in config
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) == 3
    for file in set(index.values()):
        with safe_open(tmp_path / file, framework="pt") as tensors:
            assert set(tensors.keys()) == {name for name, place in index.items() if place == file}
    biases = [name for name in index if name.endswith("e_score_correction_bias")]
    assert all(load_file(tmp_path / index[name])[name].abs().max() > 0.01 for name in biases)


@pytest.mark.parametrize(
    "part", ["self_attn.1.kv_b_proj", "mlps.1.down_proj", "mlp.experts.14.up_proj", "mlp.router.classifier"]
)
def test_the_answer_hangs_on_every_part(tmp_path: Path, part: str) -> None:
    expected = answer(write_tiny_longcat(tmp_path))
    name = f"model.layers.1.{part}.weight"
    file = tmp_path / json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, file)
    assert answer(tmp_path) != expected


def test_the_answer_hangs_on_far_tokens(tmp_path: Path) -> None:
    write_tiny_longcat(tmp_path)
    assert answer(tmp_path) != answer(tmp_path, [PROMPT[0] + 1, *PROMPT[1:]])


def test_chat_format() -> None:
    template = ChatTemplate(LONGCAT_CHAT, {"eos_token": TOKENIZER.eos})
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    ]
    assert template.render(conversation) == (
        "SYSTEM:Be brief. [Round 0] USER:One? ASSISTANT:1</longcat_s> [Round 1] USER:Two? ASSISTANT:"
    )
    assert template.render(conversation[1:2]) == "[Round 0] USER:One? ASSISTANT:"
    assert template.knows_tools
    told = template.render(conversation[1:2], [Tool("add", "Adds.", {"type": "object"})], LONGCAT)
    assert told.startswith("## Tools\n") and told.endswith("\n\n## Messages\n[Round 0] USER:One? ASSISTANT:")
    assert TOKENIZER.before[EOS_TOKEN_ID] == "</longcat_s>"


def test_the_metrics_say_that_zero_experts_enter_no_product(tmp_path: Path) -> None:
    """Every token of every layer chooses four experts; those that entered a product are the real ones, none else."""
    config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1, speculation="off")
    metrics = Metrics("decode", "test")
    EngineUnderTest(Engine.load(write_tiny_longcat(tmp_path), config, metrics), metrics).answer(PROMPT, max_tokens=5)
    real, zero = (metrics.value("serval_moe_assignments_total", kind=kind) for kind in ("real", "zero"))
    tokens = len(PROMPT) + 4
    assert real + zero == tokens * CONFIG["moe_topk"] * CONFIG["num_layers"]
    assert metrics.value("serval_moe_product_rows_total") == real
    assert zero > 0
