"""`serval plan`: how large the pools must be, and what tokens cost then (docs/planner.md)."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigError
from telemetry.cost import WorkerPrice

if TYPE_CHECKING:
    from planner.decode_roofline import NumberFormat


class Format(StrEnum):
    """Bytes per value of dense weights, experts and KV cache."""

    BF16 = "bf16"
    FP8_EXPERTS = "fp8-experts"
    FP8 = "fp8"
    FP8_KV = "fp8-kv"


def plan(
    model: Annotated[
        str,
        typer.Option(help="Hugging Face folder (its config.json is enough), or longcat-flash, deepseek-v3, qwen3-235b-a22b."),
    ] = "longcat-flash",
    gpu: Annotated[str, typer.Option(help="a100, h20, h100, h200, h800 or b200.")] = "h800",
    trace: Annotated[Path | None, typer.Option(help="CSV or JSON lines with arrival times, prompt and answer lengths.")] = None,
    isl: Annotated[int | None, typer.Option(min=1, help="Prompt tokens, where there is no trace.")] = None,
    osl: Annotated[int | None, typer.Option(min=1, help="Answer tokens, where there is no trace.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, max=1e6, help="Requests per second, where there is no trace.")] = None,
    slo_ttft: Annotated[
        float, typer.Option(min=1e-3, max=1e6, help="Seconds to the first token that 95% of requests keep.")
    ] = 2.0,
    slo_tps: Annotated[float, typer.Option(min=0.1, max=1e6, help="Tokens per second of every answer.")] = 20.0,
    gpu_hour_usd: Annotated[
        float, typer.Option(min=0, max=1e6, help="Dollars for one GPU and hour.")
    ] = WorkerPrice().gpu_hour_usd,
    number_format: Annotated[
        Format, typer.Option("--format", help="fp8-experts: experts in 8 bits; fp8: all weights; fp8-kv: and the KV cache.")
    ] = Format.FP8_EXPERTS,
    draft_acceptance: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of drafted tokens that are right; 0: no drafts. LongCat-Flash: 0.9."),
    ] = None,
    cached: Annotated[float, typer.Option(min=0, max=0.99, help="Share of prompts' tokens found in the prefix cache.")] = 0.0,
    period: Annotated[float, typer.Option(min=1, max=1e9, help="Seconds; the trace's busiest period sizes the pools.")] = 300.0,
    decode_overhead: Annotated[
        float | None, typer.Option(min=1, max=1000, help="Measured time over the roofline's, decode.")
    ] = None,
    prefill_overhead: Annotated[
        float | None, typer.Option(min=1, max=1000, help="Measured time over the roofline's, prefill.")
    ] = None,
    simulate: Annotated[bool, typer.Option(help="Also run the trace through simulated pools that scale.")] = False,
    start: Annotated[float, typer.Option(min=0, max=1e6, help="Seconds that a simulated replica takes to start.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Recommend pool sizes and parallel split, with dollars per million tokens."""
    from rich.console import Console

    from planner.capacity import Setting, Slo
    from planner.gpus import find_gpu
    from planner.model_files import find_model
    from planner.overheads import Overheads, measured_overheads
    from planner.trace import read_trace
    from planner.workload import Workload, require_context
    from serving.plan_report import make_report
    from serving.plan_view import show

    arrivals = None if trace is None else read_trace(trace.expanduser())
    if arrivals is not None:
        given = [name for name, value in (("isl", isl), ("osl", osl), ("rate", rate)) if value is not None]
        if given:
            raise ConfigError(f"{given[0]}: comes from the trace; give one of the two")
        workload = Workload.of_trace(arrivals, period)
    else:
        if simulate:
            raise ConfigError("simulate: needs a trace")
        workload = Workload.constant(_needed("isl", isl), _needed("osl", osl), _needed("rate", rate))
    shape, measured = find_model(model), measured_overheads()
    require_context(shape, [one.isl + one.osl for one in arrivals] if arrivals else [round(workload.isl + workload.osl)])
    setting = Setting(
        model=shape,
        gpu=find_gpu(gpu),
        number_format=_number_format(number_format),
        overheads=Overheads(decode_overhead or measured.decode, prefill_overhead or measured.prefill),
        gpu_hour_usd=gpu_hour_usd,
        draft_acceptance=(0.9 if shape.shortcut else 0.0) if draft_acceptance is None else draft_acceptance,
        cached_share=cached,
    )
    report = make_report(setting, workload, Slo(slo_ttft, slo_tps), arrivals if simulate else None, start)
    if as_json:
        json.dump(report.to_json(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        show(Console(), report)


def _needed(name: str, value: float | None) -> float:
    if value is None:
        raise ConfigError(f"{name}: give --{name}, or a --trace")
    return value


def _number_format(name: Format) -> "NumberFormat":
    from planner.decode_roofline import NumberFormat

    formats = {
        Format.BF16: NumberFormat(2, 2, 2),
        Format.FP8_EXPERTS: NumberFormat(2, 1, 2),
        Format.FP8: NumberFormat(1, 1, 2),
        Format.FP8_KV: NumberFormat(1, 1, 1),
    }
    return formats[name]
