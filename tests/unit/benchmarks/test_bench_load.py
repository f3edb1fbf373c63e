"""`serval bench` as a whole, against a scripted server."""

import asyncio
import io
import json
import signal
import sys
from pathlib import Path

import pytest
import typer
from benchmarks_support import PAUSE, Script, ScriptedServer, ending, serving, token, whole_answer
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import load
from benchmarks.completions import CompletionRequest
from benchmarks.drive import Drive
from benchmarks.http_stream import Access
from benchmarks.load import BenchmarkError, measure, run
from benchmarks.report import Workload, render

MODELS = json.dumps({"data": [{"id": "tiny", "vocab_size": 400}]})


def workload(url: str, **changes: object) -> Workload:
    asked = {"requests": 6, "warmup": 2, "input_tokens": 4, "output_tokens": 3, "concurrency": 2, "rate": None, "model": None}
    asked |= {"prompts": "tokens", "vocabulary": None, "seed": 0, "timeout_s": 10.0}
    return Workload.model_validate({**asked, "url": url, **changes})


def server(script: Script | None = None) -> ScriptedServer:
    return ScriptedServer(lambda _: script or whole_answer(3), {"/v1/models": MODELS, "/metrics": ""})


PAUSED_ANSWER: Script = [token(" a"), PAUSE, token(" b"), token(" c"), ending(3)]


async def test_a_closed_loop_keeps_so_many_open_and_leaves_the_warm_up_out() -> None:
    front = server(PAUSED_ANSWER)
    front.release_at = 2
    async with serving(front):
        report = await asyncio.wait_for(measure(workload(front.url)), 10)
    assert len(front.bodies) == 8
    assert front.open_most == 2
    assert (report.answers, report.errors, report.output_tokens, report.input_tokens) == (6, {}, 18, 24)
    assert report.workload.model == "tiny" and report.workload.vocabulary == 400
    assert all(100 <= token_id < 300 for body in front.bodies for token_id in body["prompt"])
    assert report.time_to_first_token_s is not None and report.time_to_first_token_s.samples == 6
    assert report.inter_token_latency_s is not None and report.inter_token_latency_s.samples == 12


async def test_prompts_differ_between_requests() -> None:
    async with serving(server()) as front:
        await measure(workload(front.url, input_tokens=16))
    assert len({tuple(body["prompt"]) for body in front.bodies}) == 8


async def test_an_open_loop_waits_for_nobody() -> None:
    front = server(PAUSED_ANSWER)
    front.release_at = 6  # none is answered before all have come
    async with serving(front):
        report = await asyncio.wait_for(measure(workload(front.url, warmup=0, concurrency=None, rate=1000.0)), 10)
    assert report.answers == 6


async def test_errors_are_counted_by_kind_and_their_times_left_out() -> None:
    async with serving(server([token(" a")])) as front:
        report = await measure(workload(front.url))
    assert report.errors == {"cut: the stream ended without its end": 6}
    assert report.answers == 0 and report.end_to_end_s is None and report.tokens_per_event is None
    shown = io.StringIO()
    Console(file=shown, width=200).print(render(report))
    assert "cut: the stream ended without its end: 6" in shown.getvalue()


async def test_interrupted_it_keeps_what_was_answered() -> None:
    front = server()
    front.answer = lambda body: whole_answer(3) if len(front.bodies) <= 4 else [token(" a"), PAUSE]
    async with serving(front):
        running = asyncio.create_task(measure(workload(front.url, warmup=0)))
        await asyncio.wait_for(front.paused.wait(), 5)
        running.cancel()
        report = await asyncio.wait_for(running, 5)
    assert report.interrupted
    assert report.answers == 4 and report.errors == {}


async def test_a_drive_of_nothing_does_nothing() -> None:
    drive = Drive([])
    await drive.closed_loop("http://127.0.0.1:1", 3, 1.0, "warming up")
    assert drive.answers == []


async def test_a_server_that_is_none_is_one_line() -> None:
    with pytest.raises(BenchmarkError, match="v1/models"):
        await measure(workload("http://127.0.0.1:1"))


async def test_a_named_model_is_asked_for_as_it_is() -> None:
    async with serving(server()) as front:
        await measure(workload(front.url, model="other", vocabulary=100))
    assert {body["model"] for body in front.bodies} == {"other"}


def test_the_request_is_greedy_and_of_a_fixed_length() -> None:
    body = CompletionRequest("tiny", "hello", 9).body()
    assert body["prompt"] == "hello" and body["max_tokens"] == 9 and body["stream"] is True


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(run)
    return app


def test_the_command_says_in_one_line_that_nobody_answers(command: typer.Typer) -> None:
    result = CliRunner().invoke(command, ["--url", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("serval bench: ")


def test_rate_and_concurrency_exclude_each_other(command: typer.Typer) -> None:
    result = CliRunner().invoke(command, ["--rate", "3", "--concurrency", "2"])
    assert result.exit_code == 2 and "exclude" in result.stderr


async def test_the_command_prints_a_table_and_writes_json(command: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    async with serving(server()) as front:
        arguments = ["--url", front.url, "--isl", "4", "--osl", "3", "--requests", "3", "--warmup", "0", "--json", str(file)]
        result = await asyncio.to_thread(CliRunner().invoke, command, arguments)
    assert result.exit_code == 0, result.output
    assert "TTFT" in result.stdout and "per-user tokens/s" in result.stdout
    report = json.loads(file.read_text())
    assert report["answers"] == 3 and report["workload"]["concurrency"] == 1 and report["transfer"]["workers"] == 0


async def test_ctrl_c_prints_what_there_is() -> None:
    front = server()
    front.answer = lambda body: whole_answer(3) if len(front.bodies) <= 4 else [token(" a"), PAUSE]
    async with serving(front):
        command = [sys.executable, "-m", "benchmarks.load", "--url", front.url, "--isl", "4", "--osl", "3", "--warmup", "0"]
        # A process that was started with SIGINT ignored would never see it.
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        await asyncio.wait_for(front.paused.wait(), 30)
        process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert "4 of 32 requests" in output.decode() and "(interrupted)" in output.decode()


def test_without_a_seed_each_run_has_other_prompts(command: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    async def note(workload: Workload, access: Access) -> None:
        seeds.append(workload.seed)
        raise BenchmarkError("seen")

    monkeypatch.setattr(load, "measure", note)
    for arguments in ([], [], ["--seed", "7"]):
        CliRunner().invoke(command, arguments)
    assert seeds[0] != seeds[1] and seeds[2] == 7
