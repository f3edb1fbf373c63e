"""Logits agree with transformers on the same weights, for every model and every way to compute them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.rope import read_rope
from engine.sequence import Sequence
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics

TOLERANCE = 1e-4
SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, rope_theta=500.0),
    "llama-tied-biased": LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-llama3-rope": LlamaConfig(**SMALL, rope_scaling=LLAMA3_ROPE | {"rope_theta": 10000.0}),
    "llama-yarn": LlamaConfig(**SMALL, rope_scaling=YARN_ROPE | {"rope_theta": 10000.0}),
    "llama-linear": LlamaConfig(**SMALL, rope_scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "llama-multi-head": LlamaConfig(**SMALL | {"num_key_value_heads": 6, "head_dim": 16}),
    "mistral": MistralConfig(**SMALL, sliding_window=None, head_dim=16),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Any]:
    """Our engine and transformers' model on the same random weights; biases and norms not at their neutral values."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0.0, 0.3)
        elif "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    theirs.save_pretrained(folder, max_shard_size="60KB" if request.param == "llama" else "1GB")
    return load(folder), theirs


def load(folder: Path) -> Engine:
    config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 21, threads=1, block_size=8)
    engine = Engine.load(folder, config, Metrics("decode", "test"))
    # Any value that is read though it belongs to no token of the sequence spoils its logits.
    engine.pool.data.fill_(torch.nan)
    return engine


@torch.inference_mode()
def forward(engine: Engine, *spans: tuple[Sequence, int, int]) -> torch.Tensor | None:
    batch = Batch([Span(*span) for span in spans], engine.pool.block_size, engine.model.device)
    return engine.model.forward(batch, engine.pool, engine._attention)


@torch.inference_mode()
def expected(theirs: Any, tokens: list[int]) -> torch.Tensor:
    return theirs(torch.tensor([tokens])).logits[0, -1]


def sequence(engine: Engine, length: int, seed: int, *, scattered: bool) -> Sequence:
    tokens = torch.randint(0, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    blocks = engine.kv_cache.allocate(engine.kv_cache.blocks_for(length))
    return Sequence(str(seed), tokens, SamplingParams(), blocks=blocks[::-1] if scattered else blocks)


def agree(ours: torch.Tensor | None, *theirs: torch.Tensor) -> None:
    assert ours is not None
    assert ours.shape[0] == len(theirs)
    assert (ours - torch.stack(theirs)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("scattered", [False, True], ids=["one-run", "scattered"])
def test_prefill_chunks_and_decode(pair: tuple[Engine, Any], scattered: bool) -> None:
    engine, theirs = pair
    whole = sequence(engine, 61, seed=1, scattered=scattered)
    agree(forward(engine, (whole, 0, 61)), expected(theirs, whole.tokens))

    chunked = sequence(engine, 61, seed=2, scattered=scattered)
    assert forward(engine, (chunked, 0, 7)) is None
    assert forward(engine, (chunked, 7, 40)) is None
    assert forward(engine, (chunked, 40, 41)) is None
    agree(forward(engine, (chunked, 41, 61)), expected(theirs, chunked.tokens))

    decoded = sequence(engine, 40, seed=3, scattered=scattered)
    known = decoded.tokens
    decoded.tokens = known[:30]
    agree(forward(engine, (decoded, 0, 30)), expected(theirs, known[:30]))
    for end in range(31, 41):
        decoded.tokens = known[:end]
        agree(forward(engine, (decoded, end - 1, end)), expected(theirs, known[:end]))
    for used in (whole, chunked, decoded):
        engine.kv_cache.release(used.blocks)


def test_mixed_batch(pair: tuple[Engine, Any]) -> None:
    engine, theirs = pair
    first, second, third, fourth = (sequence(engine, 30 + seed, seed, scattered=seed % 2 == 0) for seed in (11, 12, 13, 14))
    forward(engine, (first, 0, 40), (second, 0, 41), (third, 0, 20))
    logits = forward(engine, (first, 40, 41), (third, 20, 35), (second, 41, 42), (fourth, 0, 44))
    agree(logits, *(expected(theirs, s.tokens) for s in (first, second, fourth)))
    agree(forward(engine, (third, 35, 43)), expected(theirs, third.tokens))
    again = [(s, len(s.tokens) - 1, len(s.tokens)) for s in (fourth, first, third, second)]
    agree(forward(engine, *again), *(expected(theirs, s.tokens) for s, _, _ in again))
    for used in (first, second, third, fourth):
        engine.kv_cache.release(used.blocks)


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3_ROPE,
        YARN_ROPE,
        YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 16, "truncate": False},
        YARN_ROPE | {"attention_factor": 1.25},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "default"},
    ],
)
def test_rope_frequencies_equal_transformers(scaling: dict[str, Any]) -> None:
    config = LlamaConfig(**SMALL | {"head_dim": 64}, rope_scaling=scaling | {"rope_theta": 10000.0})
    theirs = LlamaRotaryEmbedding(config)
    frequencies, factor = read_rope(config.to_dict(), 64, 256).frequencies()
    assert torch.equal(frequencies, theirs.inv_freq)
    assert factor == pytest.approx(theirs.attention_scaling)


def test_bfloat16_stays_near_float32(pair: tuple[Engine, Any], tmp_path: Path) -> None:
    _, theirs = pair
    theirs.save_pretrained(tmp_path)
    config = EngineConfig(dtype="bfloat16", device="cpu", kv_memory_bytes=1 << 21, threads=1, block_size=8)
    engine = Engine.load(tmp_path, config, Metrics("decode", "test"))
    chunked, other = sequence(engine, 60, seed=21, scattered=False), sequence(engine, 33, seed=22, scattered=True)
    forward(engine, (chunked, 0, 40), (other, 0, 32))
    forward(engine, (chunked, 40, 59))
    logits = forward(engine, (chunked, 59, 60), (other, 32, 33))
    assert logits is not None
    for ours, used in zip(logits.float(), (chunked, other), strict=True):
        exact = expected(theirs, used.tokens)
        assert (ours - exact).norm() <= 0.06 * exact.norm()
