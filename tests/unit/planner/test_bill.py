"""The bill adds up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.bill import Sample, make_bill

DOLLARS = st.floats(0, 1e3)


def samples(pool: str, paid: float, busy: float, spent: list[tuple[str, str, float]], workers: int = 2) -> list[Sample]:
    """At $3.60 per worker and hour: a thousandth of a dollar per second."""
    return [
        Sample("serval_workers", {"pool": pool}, workers),
        Sample("serval_worker_hour_cost_dollars", {"pool": pool}, 3.6),
        Sample("serval_pool_cost_dollars_total", {"pool": pool}, paid),
        Sample("serval_pool_busy_seconds_total", {"pool": pool}, busy * 1000),
        *(
            Sample("serval_cost_dollars_total", {"pool": pool, "tenant": tenant, "reason": reason}, usd)
            for tenant, reason, usd in spent
        ),
    ]


def test_pools_tenants_and_reasons() -> None:
    found = [
        *samples("prefill", 10.0, 4.0, [("acme", "served", 3.0), ("acme", "retried", 0.5), ("duo", "failed", 0.5)]),
        *samples("decode", 20.0, 9.0, [("acme", "served", 8.0)], workers=4),
        Sample("serval_prompt_tokens_total", {"tenant": "acme"}, 2e6),
        Sample("serval_generation_tokens_total", {"tenant": "acme"}, 1e6),
        Sample("serval_generation_tokens_total", {"tenant": "duo"}, 1e6),
    ]
    bill = make_bill(found)
    prefill, decode = bill.pools["prefill"], bill.pools["decode"]
    assert (prefill.usd_per_hour, decode.usd_per_hour) == pytest.approx((7.2, 14.4))
    assert (prefill.idle_usd, decode.idle_usd) == pytest.approx((6.0, 11.0))
    assert (prefill.unaccounted_usd, decode.unaccounted_usd) == pytest.approx((0.0, 1.0))
    assert (bill.usd, bill.idle_usd) == pytest.approx((30.0, 17.0))
    assert bill.usd_by_tenant == pytest.approx({"acme": 11.5, "duo": 0.5})
    assert bill.usd_by_reason == pytest.approx({"served": 11.0, "retried": 0.5, "failed": 0.5})
    assert bill.usd_per_million_input == pytest.approx(5.0)
    assert bill.usd_per_million_output == pytest.approx(10.0)
    assert bill.unbalanced == pytest.approx(1.0 / 13.0)


def test_several_routers_count_the_same_workers_and_each_its_own_requests() -> None:
    first = samples("decode", 20.0, 9.0, [("acme", "served", 5.0)], workers=4)
    second = samples("decode", 18.0, 8.0, [("acme", "served", 3.0), ("", "lost", 1.0)], workers=4)
    bill = make_bill([*first, *second])
    decode = bill.pools["decode"]
    assert (decode.workers, decode.usd, decode.requests_usd) == (4, 20.0, 9.0)
    assert decode.idle_usd == pytest.approx(11.0) and bill.unbalanced == pytest.approx(0.0)
    assert bill.usd_by_reason == {"served": 8.0, "lost": 1.0}


@settings(max_examples=30, deadline=None)
@given(DOLLARS, DOLLARS, st.lists(DOLLARS, max_size=4))
def test_every_pool_is_requests_idle_and_unaccounted(paid: float, busy: float, spent: list[float]) -> None:
    """Nothing is in two places or in none, and what a lost counter would have said is never negative."""
    bill = make_bill(samples("decode", paid, busy, [("t", str(number), usd) for number, usd in enumerate(spent)]))
    pool = bill.pools["decode"]
    assert pool.requests_usd + pool.idle_usd + pool.unaccounted_usd == pytest.approx(pool.usd)
    assert pool.requests_usd == pytest.approx(sum(bill.usd_by_tenant.values()))
    assert pool.unaccounted_usd >= -1e-9


def test_a_cluster_that_did_nothing() -> None:
    bill = make_bill([])
    assert bill.usd == 0 and bill.usd_per_million_output is None and bill.unbalanced is None and bill.usd_by_tenant == {}
