"""What `serval plan` prints: the recommendation, the splits beside it, what speed costs, and the simulation."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.capacity import Plan, PoolPlan
from planner.comparison import Comparison, Run
from serving.plan_report import Report
from serving.text_plot import bar, sparkline

PLOT_WIDTH = 40
CHOICES_SHOWN = 5


def show(console: Console, report: Report) -> None:
    setting, workload, slo, plan = report.setting, report.workload, report.slo, report.plan
    console.print(
        f"{setting.model.name} on {setting.gpu.name} at ${setting.gpu_hour_usd:g} per hour: {workload.rate:.3g} requests/s, "
        f"{workload.isl:,.0f} tokens in, {workload.osl:,.0f} out; TTFT {slo.ttft_s:g} s, {slo.tokens_per_s:g} tokens/s"
    )
    console.print(_pools(plan))
    console.print(
        Text(
            f"{plan.prefill.gpus + plan.decode.gpus} GPUs, ${plan.usd_per_hour:,.2f} per hour, "
            f"${plan.usd_per_million_output:.3g} per million answer tokens, both pools together",
            style="bold",
        )
    )
    console.print(_choices("other splits, prefill", plan.prefill_choices[1:]))
    console.print(_choices("other splits, decode", plan.decode_choices[1:]))
    console.print("\n$ per million answer tokens on full decode GPUs, by tokens/s of a reader")
    dearest = max((price.usd_per_million for price in report.curve), default=0.0)
    for price in report.curve:
        shown = bar(price.usd_per_million, dearest, PLOT_WIDTH)
        console.print(
            f"{price.tokens_per_s:6.0f}  ${price.usd_per_million:<8.3g}{shown} {price.gpus_per_worker} GPUs", highlight=False
        )
    if report.comparison is not None:
        _show_simulation(console, report.comparison)
    console.print(
        f"\nEstimates: within {report.largest_error:.0%} where others have published, unknown elsewhere (docs/planner.md). "
        "Calibrate with --decode-overhead and --prefill-overhead.",
        style="dim",
    )


def _pools(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("pool", "workers", "GPUs each", "GPUs", "busy", "latency", "tokens/s/GPU", "$/M tokens", "limited by"):
        table.add_column(name, justify="left" if name in ("pool", "limited by") else "right", overflow="fold")
    table.add_row("prefill", *_row(plan.prefill, f"TTFT {plan.prefill.latency_s * 1000:,.0f} ms"))
    table.add_row("decode", *_row(plan.decode, f"TPOT {plan.decode.latency_s * 1000:,.1f} ms"))
    return table


def _row(pool: PoolPlan, latency: str) -> tuple[str, ...]:
    return (
        str(pool.workers),
        str(pool.gpus_per_worker),
        str(pool.gpus),
        f"{pool.busy:.0%}",
        latency,
        f"{pool.tokens_per_s_per_gpu:,.0f}",
        f"{pool.usd_per_million:.3g}",
        pool.limit,
    )


def _choices(title: str, pools: Iterable[PoolPlan]) -> str:
    shown = [f"{one.workers} x {one.gpus_per_worker} (${one.usd_per_million:.3g}/M)" for one in list(pools)[:CHOICES_SHOWN]]
    return f"{title}: {', '.join(shown) or 'none keeps the SLO'}"


def _show_simulation(console: Console, comparison: Comparison) -> None:
    console.print("\nThe trace through pools that scale")
    for name in ("prefill", "decode"):
        sizes = [getattr(record.decision, name).desired for record in comparison.outcome.records]
        if sizes:
            console.print(f"{name:>8} {min(sizes):>3} to {max(sizes):<3} {sparkline(sizes, PLOT_WIDTH * 2)}", highlight=False)
    console.print(f"scaled:      {_run(comparison.scaled)}")
    if (fixed := comparison.fixed) is None:
        console.print("best fixed:  no split up to twice the plan keeps the SLO as often")
        return
    console.print(f"best fixed:  {_run(fixed)} with {fixed.prefill} prefill and {fixed.decode} decode workers")


def _run(run: Run) -> str:
    return f"{run.attainment:.2%} of requests keep the SLO, {run.gpu_hours:,.1f} GPU hours"
