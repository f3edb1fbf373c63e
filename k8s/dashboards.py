"""The three dashboards: Serving, Pools, Cost."""

from k8s.config import SloConfig
from k8s.dashboard import Dashboard, Panel, Target, Variable
from k8s.promql import Queries, or_zero, series

NOW = Queries("$__rate_interval")
TENANT = {"tenant": "$tenant"}
SHARES = (0.5, 0.9, 0.99)
THERE = NOW.gauge("workers", "pool", how="max")
WANTED = f"({NOW.gauge('pool_desired_workers', 'pool', how='max')} or {THERE})"
WASTE = {"lost": "with workers that died", "failed": "on requests that failed", "retried": "and taken up elsewhere"}
"""What worker time is spent on that nobody gets, by the reason of its cost."""


def dashboards(slo: SloConfig) -> list[Dashboard]:
    return [serving(slo), pools(), cost()]


def serving(slo: SloConfig) -> Dashboard:
    tenant = Variable("tenant", f"label_values({series('requests', 'total')}, tenant)")
    first = "time_to_first_token_seconds"
    latency = [
        Panel("Time to the first token", "s", _quantiles(first, tenant="$tenant"), "From arrival until it leaves the router."),
        Panel("Between two tokens (ITL)", "s", _quantiles("inter_token_latency_seconds"), "Of all tenants."),
        Panel(
            "Tokens per second of one user",
            "short",
            _quantiles("user_tokens_per_second", shares=(0.01, 0.1, 0.5), tenant="$tenant"),
            "1 / time per output token of one answer: the slowest users are p1.",
        ),
        Panel("First token by tenant, p99", "s", [Target(NOW.quantile(0.99, first, "tenant", **TENANT), "{{tenant}}")]),
        Panel(
            "Tokens per second of one user by tenant, p10",
            "short",
            [Target(NOW.quantile(0.1, "user_tokens_per_second", "tenant", **TENANT), "{{tenant}}")],
        ),
        Panel("Whole answer", "s", _quantiles("e2e_request_latency_seconds")),
        Panel("Waiting before any work", "s", _quantiles("request_queue_time_seconds")),
    ]
    objective = [
        Panel(
            f"First token within {slo.ttft_s:g} s",
            "percentunit",
            [Target(NOW.share_within(first, slo.ttft_s, **TENANT), "share")],
            f"The objective is {slo.goal:.2%}.",
        ),
        Panel(
            f"Token gaps within {slo.itl_s:g} s",
            "percentunit",
            [Target(NOW.share_within("inter_token_latency_seconds", slo.itl_s), "share")],
        ),
        Panel("Refused", "reqps", [Target(or_zero(NOW.rate("rejections", "reason", **TENANT)), "{{reason}}")], stacked=True),
        Panel(
            "No capacity, by what said so",
            "reqps",
            [Target(or_zero(NOW.rate("sheds", "reason", **TENANT)), "{{reason}}")],
            "At the door, but for displaced and queue_timeout: those were accepted, and waited in vain.",
            stacked=True,
        ),
    ]
    traffic = [
        Panel("Requests by outcome", "reqps", [Target(NOW.rate("requests", "outcome", **TENANT), "{{outcome}}")], stacked=True),
        Panel(
            "Tokens per second",
            "short",
            [Target(NOW.rate("prompt_tokens", **TENANT), "prompt"), Target(NOW.rate("generation_tokens", **TENANT), "answer")],
        ),
        Panel("Answer tokens by tenant", "short", [Target(NOW.rate("generation_tokens", "tenant", **TENANT), "{{tenant}}")]),
        Panel("Prompt length", "short", _quantiles("request_prompt_tokens")),
        Panel("Answer length", "short", _quantiles("request_generation_tokens")),
        Panel(
            "Went on at another worker",
            "reqps",
            [Target(or_zero(NOW.rate("retries", "reason")), "{{reason}}")],
            "What clients saw of it is a pause.",
            stacked=True,
        ),
        Panel("In the router's line", "short", [Target(or_zero(NOW.gauge("queue_length", "tenant", **TENANT)), "{{tenant}}")]),
        Panel(
            "Wait that is predicted",
            "s",
            [Target(or_zero(NOW.gauge("predicted_wait_seconds", how="max")), "the longest line's")],
            "Who would wait longer than router.max_predicted_wait_s, or its own deadline, is refused.",
        ),
    ]
    rows = [("Latency", latency), ("Objectives", objective), ("Traffic", traffic)]
    return Dashboard("serval-serving", "Serval: Serving", rows, (tenant,))


def pools() -> Dashboard:
    # Each router decides for itself, and the one that wants most is followed.
    moves = NOW.rate("scaling_decisions", "pool", "reason", how="max", reason="!steady")
    load = [
        Panel("Live workers", "short", [Target(THERE, "{{pool}}")], kind="stat"),
        Panel(
            "Workers: wanted and there",
            "short",
            [Target(WANTED, "{{pool}} wanted"), Target(THERE, "{{pool}} there")],
            "Where pools scale, what was last decided; elsewhere a pool wants what it has.",
        ),
        Panel(
            "Decisions that changed a pool, or could not",
            "short",
            [Target(or_zero(moves), "{{pool}} {{reason}}")],
            "load: it grows; calm: it shrinks; slo: it grows for a missed objective; in_vain: that did not help; limit: it may "
            "not be as large as it would.",
            stacked=True,
        ),
        Panel(
            "Pool busy",
            "percentunit",
            [Target(f"{NOW.rate('pool_busy_seconds', 'pool', how='max')} / {THERE}", "{{pool}}")],
            "Share of its workers' time in which they compute, of those that are there at all.",
        ),
        Panel("Being computed", "short", [Target(NOW.gauge("num_requests_running", "role"), "{{role}}")]),
        Panel(
            "Waiting",
            "short",
            [
                Target(NOW.gauge("num_requests_waiting", "role"), "{{role}}"),
                Target(NOW.gauge("num_requests_waiting_for_blocks"), "for KV blocks"),
            ],
        ),
        Panel("KV blocks held", "percentunit", [Target(NOW.gauge("kv_cache_usage_perc", "worker", how="max"), "{{worker}}")]),
        Panel(
            "Engine busy",
            "percentunit",
            [Target(NOW.rate("engine_busy_seconds", "worker"), "{{worker}}")],
            "Share of the time in which a worker computes: prefill and decode at the same height are in balance.",
        ),
        Panel("One engine step, p99", "s", [Target(NOW.quantile(0.99, "engine_step_seconds", "role"), "{{role}}")]),
    ]
    moved = [
        Panel("KV moved", "Bps", [Target(NOW.rate("kv_transfer_bytes", "role"), "{{role}}")]),
        Panel(
            "Transfer: whole and exposed, p99",
            "s",
            [
                Target(NOW.quantile(0.99, "kv_transfer_seconds", role="decode"), "whole"),
                Target(NOW.quantile(0.99, "kv_transfer_exposed_seconds"), "exposed"),
            ],
            "Exposed is what was left when the prompt was computed; the rest was hidden behind computing.",
        ),
        Panel(
            "Seconds exposed per second of transfer",
            "percentunit",
            [
                Target(
                    f"{NOW.rate_of_sum('kv_transfer_exposed_seconds')} / {NOW.rate_of_sum('kv_transfer_seconds', role='decode')}",
                    "exposed share",
                )
            ],
        ),
        Panel("Prompts that decode computed", "reqps", [Target(or_zero(NOW.rate("local_prefills", "reason")), "{{reason}}")]),
        Panel(
            "What went wrong",
            "short",
            [
                Target(or_zero(NOW.rate("kv_transfer_failures")), "transfers failed"),
                Target(or_zero(NOW.rate("kv_digest_mismatches")), "digests wrong"),
                Target(or_zero(NOW.rate("kv_slots_quarantined")), "slots set apart"),
                Target(or_zero(NOW.rate("worker_losses")), "workers lost"),
                Target(or_zero(NOW.rate("kv_zones_renewed")), "landing zones renewed"),
                Target(or_zero(NOW.gauge("pairs_avoided")), "pairs avoided now"),
            ],
            "Per second, but for the pairs of workers between which transfers failed, and which rest.",
        ),
        Panel("Landing zone", "short", [Target(NOW.gauge("kv_landing_blocks", "state"), "{{state}}")], stacked=True),
    ]
    inside = [
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            [Target(f"{NOW.rate('prefix_cache_hits', 'role')} / {NOW.rate('prefix_cache_queries', 'role')}", "{{role}}")],
        ),
        Panel("Event loop lag, p99", "s", [Target(NOW.quantile(0.99, "event_loop_lag_seconds", "worker"), "{{worker}}")]),
        Panel(
            "Streams ended to routers that took nothing",
            "short",
            [Target(or_zero(NOW.rate("router_stalls", "worker")), "{{worker}}")],
            "Per second, by the worker that gave up: more than link.outbox_max_bytes waited.",
        ),
        Panel(
            "Guessed tokens",
            "short",
            [
                Target(or_zero(NOW.rate("spec_decode_num_draft_tokens", "drafter")), "guessed {{drafter}}"),
                Target(or_zero(NOW.rate("spec_decode_num_accepted_tokens", "drafter")), "right {{drafter}}"),
            ],
        ),
    ]
    return Dashboard("serval-pools", "Serval: Pools", [("Load", load), ("KV transfer", moved), ("Inside", inside)])


def cost() -> Dashboard:
    # Every router counts all workers, so one of them is asked; requests are each counted by the one that had them.
    by_pool = NOW.rate("pool_cost_dollars", "pool", how="max")
    paid, busy = f"sum({by_pool})", NOW.rate("cost_dollars")
    answered = NOW.rate("generation_tokens")
    price = NOW.gauge("worker_hour_cost_dollars", "pool", how="max")
    idle = f"({by_pool} - {NOW.rate('cost_dollars', 'pool')})"
    bill = [
        Panel(
            "Paid per hour, by pool",
            "currencyUSD",
            [Target(_hourly(by_pool), "{{pool}}")],
            "All workers that routers know, busy or idle, at the configured prices.",
            stacked=True,
        ),
        Panel("Of that idle, by pool", "currencyUSD", [Target(_hourly(idle), "{{pool}}")], stacked=True),
        Panel("Idle, of what is paid", "percentunit", [Target(f"{idle} / {by_pool}", "{{pool}}")]),
        Panel(
            "Paid beyond what is wanted, per hour",
            "currencyUSD",
            [Target(f"clamp_min({THERE} - {WANTED}, 0) * {price}", "{{pool}}")],
            "Workers that a pool has and its scaling does not want: what slow shrinking costs.",
            stacked=True,
        ),
        Panel("One worker's price per hour", "currencyUSD", [Target(price, "{{pool}}")]),
        Panel(
            "Per million answer tokens",
            "currencyUSD",
            [Target(f"1e6 * {paid} / {answered}", "paid"), Target(f"1e6 * {busy} / {answered}", "while computing")],
        ),
        Panel(
            "Per million tokens, by phase",
            "currencyUSD",
            [
                Target(f"1e6 * {NOW.rate('cost_dollars', pool='prefill')} / {NOW.rate('prompt_tokens')}", "prompt"),
                Target(f"1e6 * {NOW.rate('cost_dollars', pool='decode')} / {answered}", "answer"),
            ],
            "While computing.",
        ),
    ]
    who = [
        Panel("By tenant, per hour", "currencyUSD", [Target(_hourly(NOW.rate("cost_dollars", "tenant")), "{{tenant}}")]),
        Panel(
            "By what came of it, per hour", "currencyUSD", [Target(_hourly(NOW.rate("cost_dollars", "reason")), "{{reason}}")]
        ),
        Panel(
            "Spent for nothing, per hour",
            "currencyUSD",
            [Target(or_zero(_hourly(NOW.rate("cost_dollars", reason=reason))), what) for reason, what in WASTE.items()],
            stacked=True,
        ),
        Panel(
            "Lost on retries and failures",
            "percentunit",
            [Target(f"({or_zero(NOW.rate('cost_dollars', reason='!served'))}) / {busy}", "share")],
        ),
    ]
    return Dashboard("serval-cost", "Serval: Cost", [("Bill", bill), ("Whose, and what for", who)])


def _hourly(dollars_per_second: str) -> str:
    return f"3600 * {dollars_per_second}"


def _quantiles(name: str, *, shares: tuple[float, ...] = SHARES, **matchers: str) -> list[Target]:
    return [Target(NOW.quantile(share, name, **matchers), f"p{share * 100:g}") for share in shares]
