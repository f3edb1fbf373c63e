"""`serval models`."""

from pathlib import Path

import pytest

from serving import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["serval", "models", *arguments])
    return cli.main()


@pytest.mark.parametrize("family", ["llama", "longcat-flash"])
def test_a_tiny_model_is_made_and_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    folder = tmp_path / "model"
    assert run(monkeypatch, "make-tiny", family, str(folder), "--seed", "4") == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert run(monkeypatch, "inspect", str(folder), "--expert-split", "4") == 0
    report = capsys.readouterr().out
    if family == "longcat-flash":
        assert "813.65k" in report
        assert "345.74k to 456.34k, 419.47k on average" in report
        assert "640 bytes (4 layers of 40 values)" in report
        assert "800 bytes per token (5 layers)" in report
        assert "97.58k, or 123.12k with an embedding of its own" in report
        assert "1.84 MiB (481.87k parameters, the experts split over 4 workers)" in report
    else:
        assert "1,024 bytes (4 layers of 64 values)" in report
        assert "MTP" not in report


def test_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "inspect", str(tmp_path)) == cli.EXIT_USAGE
    assert capsys.readouterr().err == f"serval: error: model: {tmp_path / 'config.json'} does not exist\n"
