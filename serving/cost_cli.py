"""`serval cost`: the bill of a running cluster."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from planner.bill import Bill


DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_WINDOW = "24h"


def cost(
    url: Annotated[
        list[str] | None, typer.Option(help="A router's HTTP address; several where there are several routers.")
    ] = None,
    prometheus: Annotated[str | None, typer.Option(help="Prometheus' address; read instead of routers.")] = None,
    window: Annotated[str | None, typer.Option(help="With Prometheus: how far back, such as 1h30m. Default: 24h.")] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar="SERVAL_CA", help="PEM file of the authority that signed the cluster's certificate.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bill as JSON.")] = False,
) -> None:
    """Print what a cluster costs: by pool, per million tokens, by tenant, idle, retried, failed and lost."""

    from planner.bill import make_bill
    from serving.chat_client import Cluster, connect
    from serving.cost_samples import from_prometheus, from_router

    samples = []
    if prometheus is not None:
        if url:
            raise ConfigError("url: Prometheus is read instead of routers; give one of the two")
        with connect(Cluster(prometheus, ca)) as client:
            samples = from_prometheus(client, prometheus.rstrip("/"), window or DEFAULT_WINDOW)
    else:
        if window is not None:
            raise ConfigError("window: needs --prometheus: a router knows nothing but the sum since it started")
        for one in dict.fromkeys(each.rstrip("/") for each in url or [DEFAULT_URL]):  # none counts twice
            with connect(Cluster(one, ca)) as client:
                samples += from_router(client, one)
    bill = make_bill(samples)
    if as_json:
        json.dump(asdict(bill), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _show(bill, f"in the last {window or DEFAULT_WINDOW}" if prometheus is not None else "since the router started")


def _show(bill: "Bill", since: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("pool", "workers", "$/hour", "$", "requests $", "idle $", "unaccounted $"):
        table.add_column(name, justify="left" if name == "pool" else "right")
    for name, pool in bill.pools.items():
        dollars = (pool.usd_per_hour, pool.usd, pool.requests_usd, pool.idle_usd, pool.unaccounted_usd)
        table.add_row(name, f"{pool.workers:.0f}", *map(_dollars, dollars))
    console.print(f"${_dollars(bill.usd)} {since}, ${_dollars(bill.idle_usd)} of it idle")
    console.print(table)
    prices = f"input {_price(bill.usd_per_million_input)}, output {_price(bill.usd_per_million_output)}"
    console.print(f"per million tokens, idle time included: {prices}")
    for title, amounts in (("by tenant", bill.usd_by_tenant), ("by what became of it", bill.usd_by_reason)):
        told = ", ".join(f"{name or 'nobody'} ${_dollars(usd)}" for name, usd in sorted(amounts.items())) or "nothing yet"
        console.print(f"requests {title}: {told}")


def _dollars(usd: float) -> str:
    """Cents for bills, and what is left of small ones."""
    return f"{usd:,.2f}" if abs(usd) >= 1 else f"{usd:.4g}"


def _price(usd: float | None) -> str:
    return "none yet" if usd is None else f"${_dollars(usd)}"
