"""The command line: what it prints and how it exits."""

import sys
from pathlib import Path

import pytest
import yaml

from serving import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["serval", *arguments])
    return cli.main()


def test_config_prints_what_is_in_effect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "config", "--kv-memory", "2GiB", "--chunk-size", "256", "--set", "decode.max_waiting=7") == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["engine"]["kv_memory_bytes"] == 2 << 30
    assert settings["engine"]["max_batch_tokens"] == 256
    assert settings["decode"]["max_waiting"] == 7


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["config", "--block-size", "0"], "engine.block_size"),
        (["config", "--prefill", "x"], "--prefill"),
        (["up", "--model", "/nowhere"], "model"),
        (["up", "--no-such-flag"], "--no-such-flag"),
        (["explode"], "explode"),
        (["config", "--set", "x"], "--set"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], field: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("serval: error: ")
    assert output.err.count("\n") == 1
    assert field in output.err


def test_chat_without_a_cluster_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "chat", "hello", "--url", "http://127.0.0.1:1") == 1
    error = capsys.readouterr().err
    assert error.startswith("serval: error: no Serval cluster answers at http://127.0.0.1:1")
    assert error.count("\n") == 1


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "version") == 0
    assert capsys.readouterr().out.startswith("serval ")


def test_the_same_flags_for_up_and_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    helps = []
    for command in ("up", "config"):
        assert run(monkeypatch, command, "--help") == 0
        helps.append({line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("│ --")})
    assert helps[0] == helps[1]
    assert {"--prefill", "--decode", "--model", "--kv-memory", "--set"} <= helps[0]


def test_a_file_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("cluster: {decode: 3}\n")
    assert run(monkeypatch, "config", "--config", str(tmp_path / "c.yaml")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["cluster"]["decode"] == 3
