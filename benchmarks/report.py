"""The result of a load run, as data (JSON) and as a table."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.completions import Answer
from benchmarks.quantiles import Spread
from benchmarks.scrape import HistogramGrowth, TransferGrowth


class Workload(BaseModel):
    """What was asked of the cluster."""

    model_config = ConfigDict(frozen=True)

    url: str
    model: str | None
    """None until the server was asked."""
    requests: int
    warmup: int
    input_tokens: int
    output_tokens: int
    concurrency: int | None
    rate: float | None
    """Requests per second, Poisson; None: `concurrency` requests are open at any time."""
    prompts: Literal["tokens", "text"]
    vocabulary: int | None
    """Token ids are drawn below it; None until the server was asked."""
    seed: int
    timeout_s: float


class LoadReport(BaseModel):
    """What came of it. Latencies in seconds, over the answers without error, from the moment a request was due."""

    model_config = ConfigDict(frozen=True)

    workload: Workload
    interrupted: bool
    duration_s: float
    answers: int
    errors: dict[str, int]
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    requests_per_second: float
    input_tokens_per_second: float
    output_tokens_per_second: float
    tokens_per_event: float | None
    time_to_first_token_s: Spread | None
    inter_token_latency_s: Spread | None
    """Between two events of one answer."""
    time_per_output_token_s: Spread | None
    """Mean over one answer, the first token apart."""
    user_tokens_per_second: Spread | None
    end_to_end_s: Spread | None
    transfer: TransferGrowth

    @classmethod
    def of(
        cls, workload: Workload, answers: Sequence[Answer], duration_s: float, transfer: TransferGrowth, interrupted: bool
    ) -> "LoadReport":
        good = [answer for answer in answers if answer.error is None]
        speeds = [speed for answer in good if (speed := answer.tokens_per_second) is not None]
        events = sum(len(answer.event_s) for answer in good)
        input_tokens, output_tokens = (sum(answer.prompt_tokens for answer in good), sum(a.completion_tokens for a in good))
        return cls(
            workload=workload,
            interrupted=interrupted,
            duration_s=duration_s,
            answers=len(good),
            errors=dict(Counter(answer.error for answer in answers if answer.error is not None).most_common()),
            input_tokens=input_tokens,
            cached_input_tokens=sum(answer.cached_tokens for answer in good),
            output_tokens=output_tokens,
            requests_per_second=len(good) / duration_s,
            input_tokens_per_second=input_tokens / duration_s,
            output_tokens_per_second=output_tokens / duration_s,
            tokens_per_event=output_tokens / events if events else None,
            time_to_first_token_s=Spread.of([answer.time_to_first_token_s for answer in good]),
            inter_token_latency_s=Spread.of([gap for answer in good for gap in answer.between_events_s]),
            time_per_output_token_s=Spread.of([1 / speed for speed in speeds]),
            user_tokens_per_second=Spread.of(speeds),
            end_to_end_s=Spread.of([answer.end_to_end_s for answer in good]),
            transfer=transfer,
        )


def render(report: LoadReport) -> RenderableType:
    """For a terminal."""
    return Group(Text(_title(report), style="italic"), _latencies(report), _totals(report))


def _latencies(report: LoadReport) -> Table:
    table = Table()
    table.add_column("per request")
    for name in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right")
    _row(table, "TTFT, ms", report.time_to_first_token_s, 1000)
    _row(table, "ITL, ms", report.inter_token_latency_s, 1000)
    _row(table, "TPOT, ms", report.time_per_output_token_s, 1000)
    _row(table, "per-user tokens/s", report.user_tokens_per_second, 1)
    _row(table, "end to end, ms", report.end_to_end_s, 1000)
    return table


def _row(table: Table, name: str, spread: Spread | None, factor: float) -> None:
    if spread is None:
        table.add_row(name, *["-"] * 5)
        return
    values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.largest)
    table.add_row(name, *(f"{value * factor:,.1f}" for value in values))


def _title(report: LoadReport) -> str:
    load = report.workload
    shape = f"{load.input_tokens} in / {load.output_tokens} out"
    pace = f"{load.rate:g} requests/s" if load.rate is not None else f"{load.concurrency} at once"
    stopped = " (interrupted)" if report.interrupted else ""
    return f"{load.model}: {report.answers} of {load.requests} requests, {shape}, {pace}, {report.duration_s:.1f} s{stopped}"


def _totals(report: LoadReport) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("requests/s", f"{report.requests_per_second:.2f} (seed {report.workload.seed})")
    cached = f", of them {report.cached_input_tokens:,} from prefix caches" if report.cached_input_tokens else ""
    table.add_row("tokens in", f"{report.input_tokens:,}{cached} ({report.input_tokens_per_second:,.1f}/s)")
    event = f", {report.tokens_per_event:.2f} per event" if report.tokens_per_event else ""
    table.add_row("tokens out", f"{report.output_tokens:,} ({report.output_tokens_per_second:,.1f}/s{event})")
    table.add_row("errors", ", ".join(f"{kind}: {count}" for kind, count in report.errors.items()) or "none")
    for name, text in _transfer_rows(report.transfer):
        table.add_row(name, text)
    return table


def _transfer_rows(transfer: TransferGrowth) -> list[tuple[str, str]]:
    if transfer.workers == 0:
        return [("KV transfer", "unknown: no worker's /metrics could be read")]
    rows = [
        ("KV moved", f"{transfer.landed_bytes / 1e6:,.1f} MB landed, {transfer.written_bytes / 1e6:,.1f} MB written"),
        ("KV transfer time", _histogram(transfer.transfer)),
        ("  of it exposed", _histogram(transfer.exposed)),
    ]
    if transfer.local_prefills:
        rows.append(("prefilled at decode", _counts(transfer.local_prefills)))
    if transfer.failures or transfer.digest_mismatches:
        failures = transfer.failures | ({"digest": transfer.digest_mismatches} if transfer.digest_mismatches else {})
        rows.append(("failed transfers", _counts(failures)))
    return rows


def _histogram(growth: HistogramGrowth) -> str:
    if growth.mean_s is None or growth.p50_s is None or growth.p99_s is None:
        return "none"
    mean, p50, p99 = (f"{value * 1000:,.2f}" for value in (growth.mean_s, growth.p50_s, growth.p99_s))
    return f"{growth.total_s:.3f} s in {growth.count} transfers; ms each: mean {mean}, p50 ~{p50}, p99 ~{p99}"


def _counts(counts: dict[str, float]) -> str:
    return ", ".join(f"{name}: {count:g}" for name, count in counts.items())
