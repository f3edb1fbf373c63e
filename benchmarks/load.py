"""`serval bench`: drives a running cluster over HTTP with synthetic prompts and says what its users would have seen.

`run` is the command, with a signature for typer: `app.command("bench")(run)`. `python -m benchmarks.load` is the same.
"""

import asyncio
import secrets
import ssl
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import typer

from benchmarks.completions import CompletionRequest
from benchmarks.drive import Drive
from benchmarks.http_stream import OPEN, Access
from benchmarks.report import LoadReport, Workload, render
from benchmarks.scrape import Scraper
from benchmarks.terminal import result_console
from benchmarks.workload import poisson_arrivals_s, prompts

DEFAULT_VOCABULARY = 32_000
"""Where the server does not say. Few models have fewer; for those there is --vocabulary."""

ASK_TIMEOUT_S = 5.0
EXIT_ERRORS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class BenchmarkError(Exception):
    """The run cannot start; the message is one line."""


class PromptKind(StrEnum):
    TOKENS = "tokens"
    TEXT = "text"


def run(
    url: Annotated[str, typer.Option(help="The router's HTTP address.")] = "http://127.0.0.1:8000",
    ca: Annotated[
        Path | None, typer.Option(envvar="SERVAL_CA", help="PEM file of the authority that signed the cluster's certificate.")
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="SERVAL_API_KEY", help="Better in the environment: others see flags.")] = "",
    model: Annotated[str | None, typer.Option(help="Default: the first that the server lists.")] = None,
    input_tokens: Annotated[int, typer.Option("--isl", min=1, help="Tokens of a prompt (words with --prompts text).")] = 256,
    output_tokens: Annotated[
        int, typer.Option("--osl", min=1, help="Tokens of an answer; the end-of-text token is ignored.")
    ] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests measured.")] = 32,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before them, not measured.")] = 2,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests open at any time. Default 1, without --rate.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Requests per second, Poisson; excludes --concurrency.")] = None,
    prompt_kind: Annotated[
        PromptKind, typer.Option("--prompts", help="tokens: random ids. text: English words, tokenised by the server.")
    ] = PromptKind.TOKENS,
    vocabulary: Annotated[
        int | None, typer.Option(min=4, help="Size to draw ids from. Default: the model's, if it says.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same prompts, which prefix caches then know. Default: a new one each time.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one answer.")] = 600.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as JSON.")] = None,
) -> None:
    """Measure a running cluster: latency percentiles, throughput, KV transfer.

    Exit status: 0 when every request was answered in full, 1 when some were not, 2 when the run could not start, 130 after
    Ctrl-C, which still prints what there is.
    """
    workload = Workload(
        url=url.rstrip("/"),
        model=model,
        requests=requests,
        warmup=warmup,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=None if rate is not None else concurrency or 1,
        rate=rate,
        prompts=prompt_kind.value,
        vocabulary=vocabulary,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        timeout_s=timeout_s,
    )
    try:
        if rate is not None and concurrency is not None:
            raise BenchmarkError("--rate and --concurrency exclude each other")
        report = asyncio.run(measure(workload, Access(api_key, _trust(ca))))
    except BenchmarkError as error:
        print(f"serval bench: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    result_console().print(render(report))
    if json_file is not None:
        json_file.write_text(report.model_dump_json(indent=2) + "\n")
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if report.errors:
        raise typer.Exit(EXIT_ERRORS)


async def measure(workload: Workload, access: Access = OPEN) -> LoadReport:
    """One run against a cluster that serves already. Cancelled (Ctrl-C), it reports what was answered until then. Raises
    BenchmarkError when the server cannot be asked for its models."""
    verify = access.trust or workload.url.startswith("https:")
    async with httpx.AsyncClient(base_url=workload.url, verify=verify, timeout=ASK_TIMEOUT_S, trust_env=False) as http:
        workload = await _ask_for_model(http, workload, access)
        vocabulary = None if workload.prompts == "text" else workload.vocabulary
        everything = [
            CompletionRequest(workload.model or "", prompt, workload.output_tokens)
            for prompt in prompts(workload.seed, workload.warmup + workload.requests, workload.input_tokens, vocabulary)
        ]
        warmup, measured = Drive(everything[: workload.warmup], access), Drive(everything[workload.warmup :], access)
        await warmup.closed_loop(workload.url, workload.concurrency or 1, workload.timeout_s, "warming up")
        scraper = await Scraper.discover(http)
        before = await scraper.read()
        if warmup.interrupted:
            measured.interrupted = True
        elif workload.rate is None:
            await measured.closed_loop(workload.url, workload.concurrency or 1, workload.timeout_s, "measuring")
        else:
            arrivals_s = poisson_arrivals_s(workload.seed, workload.requests, workload.rate)
            await measured.open_loop(workload.url, arrivals_s, workload.timeout_s, "measuring")
        growth = (await scraper.read()).growth_since(before)
    return LoadReport.of(workload, measured.answers, measured.duration_s, growth, measured.interrupted)


def _trust(ca: Path | None) -> ssl.SSLContext | None:
    try:
        return ssl.create_default_context(cafile=ca) if ca else None
    except (ssl.SSLError, OSError) as error:
        raise BenchmarkError(f"--ca: {ca}: {error.strerror or 'holds no certificate in PEM'}") from error


async def _ask_for_model(http: httpx.AsyncClient, workload: Workload, access: Access) -> Workload:
    try:
        # The key goes with this request alone: the same client reads the workers' /metrics, in plain text.
        response = await http.get("/v1/models", headers=access.headers)
        response.raise_for_status()
        cards = {card["id"]: card for card in response.json()["data"]}
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise BenchmarkError(f"{workload.url}/v1/models: {error or type(error).__name__}") from error
    model = workload.model if workload.model is not None else next(iter(cards), None)
    if model is None:
        raise BenchmarkError(f"{workload.url} serves no model")
    vocabulary = workload.vocabulary or cards.get(model, {}).get("vocab_size") or DEFAULT_VOCABULARY
    return workload.model_copy(update={"model": model, "vocabulary": vocabulary})


if __name__ == "__main__":
    typer.run(run)
