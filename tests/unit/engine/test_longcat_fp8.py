"""A LongCat-Flash checkpoint with 8-bit matrices and block scales is the model that its numbers say."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.eight_bit import EightBitMatrix
from engine.engine import Engine
from engine.tiny_longcat import write_tiny_longcat
from protocol.errors import ConfigError
from telemetry.metrics import Metrics
from tests.unit.engine.conftest import EngineUnderTest, greedy, random_prompt

UNEVEN_BLOCK = (32, 40)
"""Divides none of the tiny model's matrices evenly both ways."""
EVEN_BLOCK = (16, 16)
"""Divides all of them."""
LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantised(matrix: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Its 8-bit form, the scales, and what they stand for: block by block."""
    counts = [-(-size // block) for size, block in zip(matrix.shape, block, strict=True)]
    eight_bit, scales, stands_for = torch.empty_like(matrix).to(torch.float8_e4m3fn), torch.empty(counts), matrix.clone()
    for row in range(counts[0]):
        for column in range(counts[1]):
            place = tuple(slice(index * size, (index + 1) * size) for index, size in zip((row, column), block, strict=True))
            scales[row, column] = matrix[place].abs().max() / LARGEST
            eight_bit[place] = (matrix[place] / scales[row, column]).to(torch.float8_e4m3fn)
            stands_for[place] = eight_bit[place].float() * scales[row, column]
    return eight_bit, scales, stands_for


def is_quantised(name: str, tensor: torch.Tensor) -> bool:
    """As released: matrices of attentions, MLPs (the draft head's too) and of some layers' experts."""
    left = ("embed_tokens", "lm_head", "classifier", "layers.1.mlp.experts", "eh_proj")
    return tensor.dim() == 2 and not any(part in name for part in left)


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The 8-bit checkpoint, and one of the numbers that it stands for. Parameter: the block."""
    block: tuple[int, int] = getattr(request, "param", UNEVEN_BLOCK)
    eight_bit, plain = (write_tiny_longcat(tmp_path / name) for name in ("eight-bit", "plain"))
    weight_map = {}
    for file in sorted(plain.glob("*.safetensors")):
        stored, stood_for = {}, {}
        for name, tensor in load_file(file).items():
            if is_quantised(name, tensor):
                stored[name], stored[f"{name}_scale_inv"], stood_for[name] = quantised(tensor, block)
            else:
                stored[name] = stood_for[name] = tensor
        save_file(stored, eight_bit / file.name)
        save_file(stood_for, file)
        weight_map |= dict.fromkeys(stored, file.name)
    (eight_bit / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    change_config(eight_bit, quantization_config={"quant_method": "fp8", "weight_block_size": list(block)})
    return eight_bit, plain


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def engine(folder: Path, fp8_weights: Literal["auto", "keep"] = "auto") -> EngineUnderTest:
    metrics = Metrics("decode", "test")
    config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1, fp8_weights=fp8_weights)
    return EngineUnderTest(Engine.load(folder, config, metrics), metrics)


def test_same_answer_as_the_numbers_it_stands_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    eight_bit, plain = pair
    prompt = list(range(4, 204))
    expected = engine(plain).answer(prompt, max_tokens=20)
    assert engine(eight_bit).answer(prompt, max_tokens=20) == expected
    unrounded = write_tiny_longcat(tmp_path / "unrounded")
    assert engine(unrounded).answer(prompt, max_tokens=20) != expected, "rounding must matter, else this shows nothing"


@pytest.mark.parametrize(
    ("pair", "kept"),
    [(UNEVEN_BLOCK, set()), (EVEN_BLOCK, {(384, 96), (96, 192), (96, 64), (16, 96, 96), (16, 96, 48)})],
    ids=["uneven", "even"],
    indirect=["pair"],
)
def test_the_same_answer_with_matrices_kept_in_8_bits(
    pair: tuple[Path, Path], kept: set[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLPs, attentions' outputs and one layer's experts, where blocks divide them; a CPU widens them for each product."""
    eight_bit, plain = pair
    widened: list[tuple[int, ...]] = []
    original = EightBitMatrix.widened

    def noted(self: EightBitMatrix, dtype: torch.dtype) -> torch.Tensor:
        widened.append(tuple(self.shape))
        return original(self, dtype)

    monkeypatch.setattr(EightBitMatrix, "widened", noted)
    prompt = list(range(4, 204))
    answer = engine(eight_bit, "keep").answer(prompt, max_tokens=20)
    assert set(widened) == kept
    assert widened.count((96, 64)) >= 4 * widened.count((16, 96, 96)), "the other layer's experts were left as they were"
    assert answer == engine(plain).answer(prompt, max_tokens=20)


@pytest.mark.parametrize("fp8_weights", ["auto", "keep"])
@pytest.mark.parametrize("pair", [EVEN_BLOCK], ids=["even"], indirect=True)
def test_the_head_guesses_as_the_numbers_it_stands_for(
    pair: tuple[Path, Path], fp8_weights: Literal["auto", "keep"], tmp_path: Path
) -> None:
    def guesses(folder: Path) -> list[int]:
        """After each of some prompts. No answer hangs on them, so only they tell."""
        under_test, guessed = engine(folder, fp8_weights).engine, []
        for seed in range(12):
            sequence = greedy("one", random_prompt(40, seed), max_tokens=1)
            under_test.submit(sequence)
            under_test.step()
            guessed += sequence.drafts
            under_test.release(sequence)
        return guessed

    eight_bit, plain = pair
    expected = guesses(plain)
    assert len(expected) == 12
    assert guesses(eight_bit) == expected
    assert guesses(write_tiny_longcat(tmp_path / "unrounded")) != expected, "rounding must matter, else this shows nothing"


def test_a_scale_that_lacks_is_named(pair: tuple[Path, Path]) -> None:
    eight_bit, _ = pair
    scale = "model.layers.0.mlps.0.up_proj.weight_scale_inv"
    for file in eight_bit.glob("*.safetensors"):
        save_file({name: tensor for name, tensor in load_file(file).items() if name != scale}, file)
    with pytest.raises(ConfigError, match=scale):
        engine(eight_bit)


def test_scales_without_a_word_in_the_config_are_unexpected(pair: tuple[Path, Path]) -> None:
    eight_bit, _ = pair
    change_config(eight_bit, quantization_config=None)
    with pytest.raises(ConfigError, match=r"unexpected tensors: .*_scale_inv"):
        engine(eight_bit)
