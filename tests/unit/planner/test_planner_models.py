"""The planner's own reader of config.json counts what the engine would load."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.models.blueprint import count_parameters
from engine.models.registry import read_model_config
from engine.tiny import write_tiny_llama
from engine.tiny_longcat import write_tiny_longcat
from planner.known_models import KNOWN_MODELS
from planner.model_files import find_model, shape_of
from protocol.errors import ConfigError


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_longcat])
def test_tiny_checkpoints_count_as_in_the_engine(tmp_path: Path, write: object) -> None:
    folder = tmp_path / "model"
    write(folder, seed=1)  # type: ignore[operator]
    planned, loaded = counts(folder)
    assert planned == pytest.approx(loaded, rel=0.01)
    assert exact(planned) == exact(loaded)


def test_longcat_flash_counts_as_in_the_engine(tmp_path: Path) -> None:
    raw = dict(KNOWN_MODELS["longcat-flash"]) | {"bos_token_id": 1, "eos_token_id": 2, "rope_theta": 1e7}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    planned, loaded = counts(tmp_path)
    assert planned == pytest.approx(loaded, rel=1e-4)
    assert exact(planned) == exact(loaded)


Counts = dict[str, float]


def counts(folder: Path) -> tuple[Counts, Counts]:
    """As the planner reads the folder, and as the engine does."""
    config, shape = read_model_config(folder), find_model(str(folder))
    counted = count_parameters(config)
    planned = {
        "total": shape.total_parameters,
        "activated": shape.activated_parameters,
        "experts": shape.expert_parameters,
        "KV bytes": shape.kv_values_per_token * 2,
        "KV layers": shape.kv_layers,
    }
    loaded = {
        "total": counted.total,
        "activated": counted.activated_mean,
        "experts": counted.experts,
        "KV bytes": config.kv_bytes_per_token(2),
        "KV layers": config.num_kv_layers,
    }
    return planned, loaded


def exact(found: Counts) -> list[float]:
    """What may not differ at all."""
    return [found[name] for name in ("experts", "KV bytes", "KV layers")]


@pytest.mark.parametrize(("name", "billions"), [("deepseek-v3", 671.0), ("qwen3-235b-a22b", 235.1)])
def test_known_models_are_as_large_as_they_are_called(name: str, billions: float) -> None:
    assert find_model(name).total_parameters == pytest.approx(billions * 1e9, rel=1e-3)


def test_weights_per_gpu() -> None:
    longcat = find_model("longcat-flash")
    assert longcat.weight_bytes_per_gpu(1, 2, 2) == pytest.approx(1.1213e12, rel=1e-3)
    common = (longcat.total_parameters - longcat.expert_parameters) * 2
    assert longcat.weight_bytes_per_gpu(512, 2, 2) == common + longcat.expert_parameters * 2 / 512
    assert asdict(longcat.attention)["latent"] == 512  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "does not exist"),
        ("[]", "JSON object"),
        ("{", "cannot be read"),
        ('{"architectures": ["GPT2LMHeadModel"]}', "GPT2LMHeadModel"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": -1}', "hidden_size"),
        ('{"architectures": 5}', "architecture 5 is not known"),
        ('{"architectures": "LlamaForCausalLM"}', "hidden_size must be a positive integer, not None"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_bad_models_are_named(tmp_path: Path, content: str | None, named: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=named) as told:
        find_model(str(tmp_path))
    assert str(told.value).startswith("model: ")


@pytest.mark.parametrize(
    ("name", "changed", "named"),
    [
        ("longcat-flash", {"zero_expert_num": "many"}, "zero_expert_num must be a positive integer, not 'many'"),
        ("longcat-flash", {"q_lora_rank": "x"}, "q_lora_rank must be a positive integer"),
        ("longcat-flash", {"num_layers": True}, "num_layers must be a positive integer, not True"),
        ("deepseek-v3", {"n_shared_experts": 1.5}, "n_shared_experts must be a positive integer"),
        (
            "deepseek-v3",
            {"first_k_dense_replace": 62},
            r"first_k_dense_replace must be at most num_hidden_layers \(61\), not 62",
        ),
        ("qwen3-235b-a22b", {"head_dim": "x"}, "head_dim must be a positive integer"),
    ],
)
def test_a_wrong_figure_of_a_model_is_named(name: str, changed: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^model: config.json's {named}"):
        shape_of(name, KNOWN_MODELS[name] | changed)
