"""What Prometheus computes for itself, and what it wakes people for. Every alert has a runbook of its name in docs/runbooks/."""

from dataclasses import dataclass
from typing import Any

from k8s.config import SloConfig
from k8s.promql import Queries, or_zero, series
from protocol.outcomes import Outcome

OURS = [
    outcome
    for outcome in Outcome
    if not outcome.is_success
    and outcome not in (Outcome.CANCELLED, Outcome.INVALID, Outcome.UNAUTHENTICATED, Outcome.RATE_LIMITED)
]
"""Ends that are our fault and not the client's: what the error budget pays for."""

WINDOWS = ("5m", "30m", "1h", "6h")
BURNS = (("fast", 14.4, "1h", "5m", "critical"), ("slow", 6.0, "6h", "30m", "warning"))
"""(name, how many times faster than allowed, long window, short window, severity): 14.4 spends 2% of a 30 days' budget in an hour,
6 spends 5% in six hours. Both windows must burn: the long one so that it matters, the short one so that it ends when it is over."""

_MILLISECONDS = {"s": 1000, "m": 60_000, "h": 3_600_000}

Rule = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """An objective: the recorded share of what missed it, and how an alert says so."""

    record: str
    alert: str
    says: str


ERRORS = Budget("serval:errors:share", "ServalErrorBudgetBurns", "requests fail")
FIRST_TOKENS = Budget("serval:late_first_tokens:share", "ServalFirstTokenBudgetBurns", "first tokens come late")


def groups(slo: SloConfig) -> list[dict[str, Any]]:
    """A PrometheusRule's."""
    return [
        {"name": "serval-recorded", "interval": _scaled("15s", slo), "rules": _recorded(slo)},
        {"name": "serval-objectives", "rules": [*_burns(slo, ERRORS), *_burns(slo, FIRST_TOKENS)]},
        {"name": "serval-health", "rules": _health(slo)},
    ]


def _recorded(slo: SloConfig) -> list[Rule]:
    rules = []
    ours = "|".join(OURS)
    for window in WINDOWS:
        over = Queries(_scaled(window, slo))
        failed = f"(({or_zero(over.rate('requests', outcome=ours))}) + ({or_zero(over.rate('rejections', reason=ours))}))"
        fine = over.rate("requests", outcome=f"{Outcome.STOP}|{Outcome.LENGTH}")
        rules.append(_record(f"{ERRORS.record}{window}", f"{failed} / ({failed} + ({or_zero(fine)}) > 0)"))
        late = f"1 - {over.share_within('time_to_first_token_seconds', slo.ttft_s)}"
        rules.append(_record(f"{FIRST_TOKENS.record}{window}", late))
    now = Queries("5m")
    rules.append(_record("serval:ttft_seconds:p99", now.quantile(0.99, "time_to_first_token_seconds")))
    rules.append(_record("serval:itl_seconds:p99", now.quantile(0.99, "inter_token_latency_seconds")))
    rules.append(_record("serval:busy:share", now.rate("engine_busy_seconds", "role", "worker")))
    rules.append(_record("serval:cost_dollars:per_hour", f"3600 * {now.rate('pool_cost_dollars', 'pool', how='max')}"))
    return rules


def _burns(slo: SloConfig, budget: Budget) -> list[Rule]:
    allowed = 1 - slo.goal
    rules = []
    for name, factor, long, short, severity in BURNS:
        limit = f"{factor * allowed:.6g}"
        rules.append(
            _alert(
                slo,
                budget.alert,
                f"{budget.record}{long} > {limit} and {budget.record}{short} > {limit}",
                _scaled("1m", slo),
                severity,
                f"{budget.says}: the {name} burn of the error budget, {factor:g} times what {slo.goal:.2%} allows",
                burn=name,
            )
        )
    return rules


def _health(slo: SloConfig) -> list[Rule]:
    short, long = Queries("5m"), Queries("1h")
    lag = short.quantile(0.99, "event_loop_lag_seconds", "worker")
    full = short.gauge("kv_cache_usage_perc", "worker", how="max", role="decode")
    expiry = series("certificate_expiry_timestamp_seconds", "")
    return [
        _alert(slo, "ServalDown", f"absent({series('workers', '')})", "2m", "critical", "no router answers Prometheus"),
        _alert(
            slo,
            "ServalPoolEmpty",
            f"{short.gauge('workers', 'pool', how='max')} == 0",
            "1m",
            "critical",
            "no {{ $labels.pool }} worker has joined a router",
        ),
        _alert(
            slo,
            "ServalWorkersLost",
            f"{long.increase('worker_losses', 'pool', how='max')} > 3",
            "0m",
            "warning",
            "{{ $value | humanize }} {{ $labels.pool }} workers were lost within an hour",
        ),
        _alert(slo, "ServalKvCacheFull", f"{full} > 0.95", "10m", "warning", "{{ $labels.worker }} has hardly a free KV block"),
        _alert(
            slo,
            "ServalQueueGrows",
            f"{short.quantile(0.5, 'request_queue_time_seconds')} > {slo.ttft_s:g}",
            "10m",
            "warning",
            "half of all requests wait longer than the objective for the first token",
        ),
        _alert(
            slo,
            "ServalTransfersFail",
            f"{short.rate('kv_transfer_failures')} > 0.05",
            "5m",
            "warning",
            "KV transfers fail; their prompts are computed again by decode workers",
        ),
        _alert(
            slo,
            "ServalKvCorrupted",
            f"{long.increase('kv_digest_mismatches', 'worker')} > 0",
            "0m",
            "critical",
            "layers landed at {{ $labels.worker }} with a wrong digest",
        ),
        _alert(
            slo,
            "ServalLoopLags",
            f"{lag} > 0.25",
            "10m",
            "warning",
            "the event loop of {{ $labels.worker }} runs late: tokens stutter",
        ),
        _alert(
            slo,
            "ServalRouterStalls",
            # Of one worker: a single pause of a router is seen by all of them once.
            f"{long.increase('router_stalls', how='max')} > 3",
            "0m",
            "warning",
            "a worker ended {{ $value | humanize }} streams within an hour to routers that took nothing",
        ),
        _alert(
            slo,
            "ServalCertificateEnds",
            f"{expiry} - time() < 7 * 86400",
            "1h",
            "warning",
            "the certificate on {{ $labels.surface }} of {{ $labels.worker }} ends within a week",
        ),
        _alert(
            slo,
            "ServalKeysNotRead",
            f"{long.increase('keys_reloads', result='failed')} > 0",
            "0m",
            "warning",
            "a changed keys file is wrong, and the one before stays in use",
        ),
    ]


def _scaled(duration: str, slo: SloConfig) -> str:
    """`5m` and the like, as long as a rehearsal wants it; the names of recorded series keep the true one."""
    if slo.window_scale == 1:
        return duration
    milliseconds = int(duration[:-1]) * _MILLISECONDS[duration[-1]]
    return f"{round(milliseconds * slo.window_scale)}ms"


def _record(name: str, expression: str) -> Rule:
    return {"record": name, "expr": expression}


def _alert(
    slo: SloConfig,
    name: str,
    expression: str,
    wait: str,
    severity: str,
    says: str,
    **labels: str,
) -> Rule:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity, **labels},
        "annotations": {"summary": says, "runbook_url": f"{slo.runbooks_url.rstrip('/')}/{name}.md"},
    }
