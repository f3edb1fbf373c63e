"""`serval plan`."""

import json
from pathlib import Path

import pytest

from planner.synthetic import week
from serving import cli
from serving.text_plot import bar, sparkline

CHAT = ("--isl", "4000", "--osl", "500", "--rate", "50")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.argv", ["serval", "plan", *arguments])
    return cli.main()


def write_day(folder: Path) -> Path:
    path = folder / "day.csv"
    rows = (f"{one.time_s:.3f},{one.isl},{one.osl}" for one in week(1, 0.05, days=0.1))
    path.write_text("\n".join(["time_s,isl,osl", *rows]))
    return path


def test_a_recommendation_with_its_price(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, *CHAT, "--slo-tps", "50") == 0
    shown = capsys.readouterr().out
    assert "longcat-flash on h800 at $2 per hour" in shown
    assert "96 GPUs, $192.00 per hour, $2.13 per million answer tokens" in shown
    assert "other splits, decode: 1 x 64" in shown
    assert "within 12% where others have published" in shown
    assert "█" in shown


def test_json_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, *CHAT, "--slo-tps", "50", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kv_bytes_per_token"] == 64_512
    assert told["plan"]["usd_per_hour"] == 192.0
    assert told["plan"]["decode"]["gpus_per_worker"] == 32
    assert told["simulation"] is None
    assert told["draft_acceptance"] == 0.9


def test_a_trace_and_its_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_day(tmp_path)
    assert run(monkeypatch, "--trace", str(path), "--simulate", "--slo-ttft", "5", "--start", "60") == 0
    shown = capsys.readouterr().out
    assert "The trace through pools that scale" in shown and "best fixed:" in shown
    assert run(monkeypatch, "--trace", str(path), "--simulate", "--slo-ttft", "5", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["simulation"]["records"][0].keys() == {"time_s", "prefill", "decode"}
    assert 0 < told["simulation"]["scaled"]["attainment"] <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--isl", "1", "--osl", "1"), "rate: give --rate, or a --trace"),
        ((*CHAT, "--trace", "TRACE"), "isl: comes from the trace"),
        ((*CHAT, "--simulate"), "simulate: needs a trace"),
        ((*CHAT, "--gpu", "abacus"), "gpu: abacus is not known; known are a100"),
        ((*CHAT, "--model", "/none"), "model: /none/config.json does not exist"),
        ((*CHAT, "--slo-ttft", "0.002"), "slo-ttft: no split keeps 0.002 s"),
        (("--isl", "0", "--osl", "1", "--rate", "1"), "--isl"),
        (("--trace", "/none.csv"), "trace: /none.csv cannot be read"),
        ((*CHAT[:4], "--rate", "inf"), "--rate"),
        ((*CHAT, "--gpu-hour-usd", "inf"), "--gpu-hour-usd"),
        ((*CHAT, "--slo-ttft", "inf"), "--slo-ttft"),
        (
            ("--isl", "131000", "--osl", "100", "--rate", "1", "--slo-ttft", "500"),
            "model: longcat-flash holds 131,072 tokens of a prompt and its answer, and 1 of 1 requests have more, up to 131,100",
        ),
        (
            ("--trace", "LONG"),
            "model: longcat-flash holds 131,072 tokens of a prompt and its answer, and 1 of 2 requests have more",
        ),
        (("--trace", "YEARS", "--simulate"), "simulate: the trace is 3,650 days long, and 174 can be simulated"),
    ],
)
def test_bad_input_names_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    traces = {"TRACE": write_day(tmp_path)}
    for word, last in (("LONG", "9,131072,1"), ("YEARS", "315360000,9,9")):
        traces[word] = tmp_path / f"{word}.csv"
        traces[word].write_text(f"time_s,isl,osl\n0,9,9\n{last}\n")
    given = [str(traces.get(argument, argument)) for argument in arguments]
    assert run(monkeypatch, *given) == cli.EXIT_USAGE
    told = capsys.readouterr().err
    assert told.startswith("serval: error: ") and named in told and told.count("\n") == 1


def test_plots_of_characters() -> None:
    assert bar(1.0, 2.0, 10) == "█████" and bar(0.55, 1.0, 10) == "█████▌" and bar(0.0, 0.0, 10) == ""
    assert sparkline([1, 2, 3, 8], 4) == "▁▂▃█" and sparkline([1, 1, 9, 1], 2) == "▁█" and sparkline([3, 3], 9) == "▁▁"
    assert sparkline([], 9) == ""
