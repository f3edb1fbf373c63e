"""LongCat-Flash's config and tensors as released: sizes, names in both directions, and what is refused."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.blueprint import count_draft_head, count_parameters, tensor_shapes
from engine.models.longcat_config import LongcatConfig
from engine.models.longcat_names import MTP_EMBEDDING, mtp_tensor_names, tensor_names
from engine.models.registry import read_model_config
from engine.tiny_longcat import CONFIG, write_tiny_longcat
from protocol.errors import ConfigError
from telemetry.metrics import Metrics
from tests.unit.engine.longcat_support import random_config, random_model, released_tensors

CHAT = {
    "architectures": ["LongcatFlashForCausalLM"],
    "vocab_size": 131072,
    "hidden_size": 6144,
    "num_layers": 28,
    "num_attention_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "ffn_hidden_size": 12288,
    "expert_ffn_hidden_size": 2048,
    "n_routed_experts": 512,
    "zero_expert_num": 256,
    "zero_expert_type": "identity",
    "moe_topk": 12,
    "routed_scaling_factor": 6.0,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "rope_theta": 1e7,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""LongCat-Flash-Chat's config.json, what matters of it."""


def written(folder: Path, raw: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def load(folder: Path) -> Engine:
    config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1)
    return Engine.load(folder, config, Metrics("decode", "test"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> LongcatConfig:
    config = read_model_config(written(tmp_path_factory.mktemp("chat"), CHAT))
    assert isinstance(config, LongcatConfig)
    return config


class TestChat:
    """The full model, on the meta device."""

    def test_published_sizes(self, chat: LongcatConfig) -> None:
        parameters = count_parameters(chat)
        in_billions = {name: round(count / 1e9, 2) for name, count in asdict(parameters).items()}
        assert in_billions.pop("experts") == pytest.approx(541.17, abs=0.01)
        assert in_billions == {"total": 560.66, "activated_min": 18.69, "activated_mean": 27.15, "activated_max": 31.38}
        assert chat.kv_bytes_per_token(2) == 64_512
        assert (chat.num_kv_layers, chat.entry_width) == (56, 576)

    def test_the_draft_head_adds_one_kv_layer_and_its_weights(self, chat: LongcatConfig) -> None:
        drafting = chat.with_draft_head()
        assert (drafting.num_kv_layers, drafting.num_draft_layers, chat.num_draft_layers) == (57, 1, 0)
        assert drafting.kv_bytes_per_token(2) == 65_664
        shared, own = count_draft_head(chat)
        assert shared / 1e9 == pytest.approx(0.393, abs=5e-4)
        assert (own - shared) / 1e9 == pytest.approx(0.805, abs=5e-4)
        assert set(tensor_shapes(drafting)) - set(tensor_shapes(chat)) == set(mtp_tensor_names()) - {MTP_EMBEDDING}

    def test_scales(self, chat: LongcatConfig) -> None:
        assert chat.query_scale == 2.0
        assert chat.latent_scale == pytest.approx(3.4641, abs=1e-4)
        assert chat.softmax_scale == 192**-0.5
        assert chat.checkpoint_dtype == "bfloat16", "what was released, and its config.json may not say so"

    def test_released_names_one_to_one(self, chat: LongcatConfig) -> None:
        """Spelled out here once more, from the reference."""
        names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
        for layer in (f"model.layers.{index}" for index in range(28)):
            for half in (0, 1):
                attention = f"{layer}.self_attn.{half}"
                names += [f"{attention}.{low}_proj.weight" for low in ("q_a", "q_b", "kv_b", "o")]
                names += [f"{attention}.{kind}.weight" for kind in ("q_a_layernorm", "kv_a_layernorm", "kv_a_proj_with_mqa")]
                names += [f"{layer}.mlps.{half}.{kind}_proj.weight" for kind in ("gate", "up", "down")]
                names += [f"{layer}.{kind}_layernorm.{half}.weight" for kind in ("input", "post_attention")]
            names += [f"{layer}.mlp.experts.{e}.{kind}_proj.weight" for e in range(512) for kind in ("gate", "up", "down")]
            names += [f"{layer}.mlp.router.classifier.weight", f"{layer}.mlp.router.e_score_correction_bias"]
        assert len(names) == len(set(names)) == 28 * (2 * 12 + 3 * 512 + 2) + 3
        assert set(tensor_names(chat)) == set(names)
        assert set(tensor_shapes(chat)) == set(names)


def test_transformers_writes_the_same_names(tmp_path: Path) -> None:
    """But for its gate and up matrices of zero experts, which do not exist."""
    theirs = random_model(random_config(1), seed=1)
    theirs.save_pretrained(tmp_path)
    config = theirs.config
    assert config.zero_expert_num > 0
    zero = range(config.n_routed_experts, config.n_routed_experts + config.zero_expert_num)
    layers = (f"model.layers.{index}.mlp.experts" for index in range(config.num_layers))
    too_many = {f"{layer}.{expert}.{kind}_proj.weight" for layer in layers for expert in zero for kind in ("gate", "up")}
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) - too_many == set(released_tensors(theirs))
    assert too_many <= set(saved)
    shapes = tensor_shapes(read_model_config(tmp_path))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in saved.items() if name not in too_many}


def test_the_draft_head_is_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, int]] = []
    folder = write_tiny_longcat(tmp_path)
    with caplog.at_level(logging.INFO, logger="engine.models.longcat_weights"):
        settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "kv_memory_bytes": 1 << 20, "threads": 1}
        config = EngineConfig(**settings, speculation="off")
        Engine.load(folder, config, Metrics("decode", "test"), progress=lambda *count: seen.append(count))
    assert "MTP head (model.mtp.*) is left out" in caplog.text
    everything = len(tensor_names(read_model_config(folder)))  # type: ignore[arg-type]
    assert seen == [(done, everything) for done in range(1, everything + 1)]


def test_the_draft_head_is_read_where_it_drafts(tmp_path: Path) -> None:
    """And what it lacks is named, but for its embedding: then it uses the model's."""
    folder = write_tiny_longcat(tmp_path)
    last = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(last)
    del tensors[MTP_EMBEDDING]
    save_file(tensors, last)
    assert load(folder).model.draft_head is not None
    del tensors["model.mtp.layers.0.eh_proj.weight"]
    save_file(tensors, last)
    with pytest.raises(ConfigError, match=r"lacks tensors: model\.mtp\.layers\.0\.eh_proj\.weight$"):
        load(folder)


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path) -> None:
    write_tiny_longcat(tmp_path)
    files = {path: load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    lost = "model.layers.1.mlp.router.e_score_correction_bias"
    tensors = files[tmp_path / index[lost]]
    del tensors[lost]
    tensors["model.layers.1.mlp.experts.16.gate_proj.weight"] = torch.zeros(48, 96)
    tensors["model.mtp.layers.1.eh_proj.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / index[lost])
    with pytest.raises(ConfigError) as raised:
        load(tmp_path)
    assert str(raised.value) == (
        f"model: the checkpoint lacks tensors: {lost}; it has unexpected tensors: "
        "model.layers.1.mlp.experts.16.gate_proj.weight, model.mtp.layers.1.eh_proj.weight"
    )


def test_of_many_tensors_some_are_named(tmp_path: Path) -> None:
    """One line, however many lack and are too many."""
    write_tiny_longcat(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    written(tmp_path, config | {"num_layers": 3})
    with pytest.raises(ConfigError) as raised:
        load(tmp_path)
    assert str(raised.value) == (
        "model: the checkpoint lacks tensors: model.layers.2.input_layernorm.0.weight, model.layers.2.input_layernorm.1.weight, "
        "model.layers.2.mlp.experts.0.down_proj.weight, model.layers.2.mlp.experts.0.gate_proj.weight and 70 more"
    )
    written(tmp_path, config | {"num_layers": 1})
    with pytest.raises(
        ConfigError, match=r"^model: the checkpoint has unexpected tensors: [^,]+, [^,]+, [^,]+, [^,]+ and 70 more$"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"router_bias": True, "norm_topk_prob": True}, "router_bias, norm_topk_prob"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"zero_expert_type": "constant"}, "zero_expert_type constant"),
        ({"moe_topk": 25}, "moe_topk 25"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim must be even"),
        ({"num_layers": None}, "num_layers"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8 with weight_block_size None"),
        ({"quantization_config": {"quant_method": "gptq", "weight_block_size": [128, 128]}}, "gptq"),
        ({"rope_scaling": {"type": "yarn", "mscale_all_dim": 1.0}}, "needs a number for factor"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_model_config(written(tmp_path, CONFIG | change))


def test_scale_flags_are_on_unless_they_say_off(tmp_path: Path) -> None:
    config = read_model_config(written(tmp_path, CONFIG | {"mla_scale_q_lora": False, "mla_scale_kv_lora": None}))
    assert isinstance(config, LongcatConfig)
    assert (config.query_scale, config.latent_scale) == (1.0, 1.0)


@pytest.mark.parametrize("architecture", ["LongcatCausalLM", "LongcatFlashOmniForCausalLM"])
def test_siblings_are_the_same_model(tmp_path: Path, architecture: str) -> None:
    """Under another name: Thinking's, and Omni's text part."""
    chat = read_model_config(written(tmp_path / "chat", CHAT))
    sibling = read_model_config(written(tmp_path / "sibling", CHAT | {"architectures": [architecture]}))
    assert asdict(sibling) == asdict(chat) | {"architecture": architecture}


def test_draft_head_has_one_layer() -> None:
    """Its names as released."""
    layer = "model.mtp.layers.0"
    attention = ["q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"]
    norms = ("enorm.m", "hnorm.m", "eh_proj", "input_layernorm", "post_attention_layernorm")
    assert set(mtp_tensor_names()) == {
        *("model.mtp.embed_tokens.weight", "model.mtp.norm.weight"),
        *(f"{layer}.{name}.weight" for name in norms),
        *(f"{layer}.self_attn.{name}.weight" for name in attention),
        *(f"{layer}.transformer_layer.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
