"""`serval models`."""

import json
from pathlib import Path

import pytest

from engine.tiny_longcat import write_tiny_longcat
from serving import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["serval", "models", *arguments])
    return cli.main()


@pytest.mark.parametrize("family", ["llama", "longcat-flash", "longcat-flash-lite"])
def test_a_tiny_model_is_made_and_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    folder = tmp_path / "model"
    assert run(monkeypatch, "make-tiny", family, str(folder), "--seed", "4") == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert run(monkeypatch, "inspect", str(folder), "--tensor-parallel-size", "2") == 0
    report = capsys.readouterr().out
    if family == "longcat-flash":
        assert "813.65k" in report
        assert "345.74k to 456.34k, 419.47k on average" in report
        assert "640 bytes (4 layers of 40 values)" in report
        assert "800 bytes per token (5 layers)" in report
        assert "97.58k, or 123.12k with an embedding of its own" in report
        assert "2.13 MiB (tensor_parallel_size 2)" in report
    elif family == "longcat-flash-lite":
        assert "LongcatFlashNgramForCausalLM" in report
        assert "640 bytes (4 layers of 40 values)" in report
    else:
        assert "1,024 bytes (4 layers of 64 values)" in report
        assert "MTP" not in report


def test_what_fits_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An 8-bit checkpoint's experts, MLPs and attention outputs count one byte each, and a scale per block."""
    folder = write_tiny_longcat(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    blocks = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    changed = config | {"quantization_config": blocks, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(changed))
    assert run(monkeypatch, "inspect", str(folder), "--tensor-parallel-size", "2", "--memory-gib", "0.001") == 0
    report = capsys.readouterr().out
    # Shared by two: 2 layers × (2 × (MLP + output) + 16 experts) in one byte; query and key-value up, 266 words twice in two bytes.
    kept = 2 * (2 * (3 * 96 * 192 + 96 * 64) + 16 * 3 * 96 * 48) // 2
    shared = (2 * 2 * (4 * 24 * 48 + 4 * 32 * 32) + 2 * 266 * 96) // 2
    # Everybody's: the ways down, norms, a router in float32 with its bias, sines and cosines, three counters of experts' work.
    own = 2 * 2 * ((48 + 40) * 96 + 48 + 32 + 2 * 96) + 96
    held = kept + kept // 256 * 4 + 2 * (shared + own) + 2 * 24 * 97 * 4 + 2 * 8192 * 8 * 2 + 3 * 8
    assert f"{held / (1 << 20):.2f} MiB (all that may stay so" in report
    assert f"({(int(0.001 * (1 << 30)) - held) // 320:,} tokens) of 0.001 GiB" in report
    assert run(monkeypatch, "inspect", str(folder), "--memory-gib", "0.0001") == 0
    assert "none: the weights do not fit of 0.0001 GiB" in capsys.readouterr().out


def test_a_split_that_is_impossible_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_longcat(tmp_path)
    assert run(monkeypatch, "inspect", str(folder), "--tensor-parallel-size", "3") == cli.EXIT_USAGE
    assert "engine.tensor_parallel_size: 3 processes cannot share 4 attention heads evenly" in capsys.readouterr().err


def test_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "inspect", str(tmp_path)) == cli.EXIT_USAGE
    assert capsys.readouterr().err == f"serval: error: model: {tmp_path / 'config.json'} does not exist\n"
