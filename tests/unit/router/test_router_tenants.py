"""Tenants' limits: never more than allowed, Retry-After that is true, charges corrected by what a request took."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.tenant import Bucket, LimitReached, Tenant, TenantLimits, Tenants

EXPECTED = 256


def tenant(**limits: object) -> Tenant:
    return Tenant("acme", TenantLimits(**limits), EXPECTED)  # type: ignore[arg-type]


def refusal(one: Tenant, now: float, prompt: int = 10, answer: int = 10) -> LimitReached:
    with pytest.raises(LimitReached) as refused:
        one.admit(prompt, answer, now)
    return refused.value


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 600), st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60))
def test_never_more_than_a_minutes_worth_and_what_grew_since(per_minute: int, pauses_s: list[float]) -> None:
    one, now, accepted = tenant(requests_per_minute=per_minute), 100.0, 0
    for pause_s in pauses_s:
        now += pause_s
        for _ in range(20):
            try:
                one.admit(1, 1, now)
                accepted += 1
            except LimitReached as error:
                assert error.retry_after_s is not None and error.retry_after_s > 0
                one.check(now + error.retry_after_s + 1e-6)
                with pytest.raises(LimitReached):
                    one.check(now + error.retry_after_s * 0.99 - 1e-6)
                break
    assert accepted <= per_minute + (now - 100.0) * per_minute / 60 + 1e-6


def test_tokens_are_charged_with_the_usual_answer_and_corrected_at_the_end() -> None:
    one = tenant(tokens_per_minute=1000)
    charge = one.admit(100, 5000, 0.0)
    assert charge.tokens == 100 + EXPECTED, "not the 5000 that it may take at most"
    refused = refusal(one, 0.0, prompt=600, answer=100)
    assert refused.limit == "tokens_per_minute"
    assert refused.retry_after_s == pytest.approx((700 - 644) * 60 / 1000)
    charge.settle(answer_tokens=2000, was_computed=True, is_whole=True, now=0.0)
    assert refusal(one, 0.0).retry_after_s == pytest.approx((20 + 1100) * 60 / 1000), "what it took beyond the limit is owed"
    assert one.admit(1, 5000, 1000.0).answer_tokens == 2000, "as its answers usually are"
    assert one.admit(1, 30, 2000.0).answer_tokens == 30


def test_a_request_larger_than_a_minutes_worth_is_accepted_when_nothing_is_owed() -> None:
    one = tenant(tokens_per_minute=100)
    one.admit(1000, 10, 0.0)
    assert refusal(one, 0.0, 1, 1).retry_after_s == pytest.approx((1010 - 100 + 2) * 60 / 100)
    one.admit(1000, 10, 1010 * 60 / 100 + 0.1)


def test_what_no_worker_computed_is_given_back() -> None:
    one = tenant(tokens_per_minute=100, requests_per_minute=1, max_concurrent=1)
    charge = one.admit(90, 10, 0.0)
    assert refusal(one, 0.0).limit == "max_concurrent"
    charge.settle(answer_tokens=0, was_computed=False, is_whole=False, now=0.0)
    one.admit(90, 10, 0.0)


def test_concurrency_says_when_one_is_likely_to_end() -> None:
    one = tenant(max_concurrent=2)
    charges = [one.admit(1, 10, 0.0) for _ in range(2)]
    assert refusal(one, 1.0).limit == "max_concurrent"
    charges[0].settle(10, was_computed=True, is_whole=True, now=8.0)
    one.admit(1, 10, 8.0)
    assert refusal(one, 8.0).retry_after_s == pytest.approx(4.0), "8 s per answer, two at a time"


def test_siblings_are_charged_with_their_answers_and_never_refused() -> None:
    one = tenant(requests_per_minute=1, tokens_per_minute=100, max_concurrent=1)
    one.admit(80, 10, 0.0)
    sibling = one.admit(80, 10, 0.0, is_sibling=True)
    assert (sibling.tokens, one.open_requests) == (10, 2)
    sibling.settle(10, was_computed=True, is_whole=True, now=0.0)
    assert refusal(one, 0.0).limit == "max_concurrent"


def test_new_limits_keep_what_was_used() -> None:
    tenants = Tenants({"acme": TenantLimits(requests_per_minute=2)}, EXPECTED)
    acme = tenants.of(Caller("acme"))
    for _ in range(2):
        acme.admit(1, 1, 0.0)
    assert refusal(acme, 0.0).limit == "requests_per_minute"
    tenants.set_limits({"acme": TenantLimits(requests_per_minute=3), "new": TenantLimits()})
    assert tenants.of(Caller("acme")) is acme
    acme.admit(1, 1, 0.0)
    assert refusal(acme, 0.0).retry_after_s == pytest.approx(20.0)
    tenants.set_limits({})
    assert acme.limits.requests_per_minute == 2, "without an override the configured limits hold again"
    assert tenants.of(Caller("new")).name == "default"


def test_callers_that_nobody_configured_share_one_tenant() -> None:
    tenants = Tenants({"acme": TenantLimits(weight=2.0, priority=1)}, EXPECTED)
    assert tenants.of(Caller("stranger")) is tenants.of(ANONYMOUS)
    assert {each.name for each in tenants} == {"default", "acme"}
    share = tenants.of(Caller("acme")).share
    assert (share.tenant, share.weight, share.priority) == ("acme", 2.0, 1)


def test_an_unlimited_bucket_remembers_nothing() -> None:
    bucket = Bucket()
    bucket.take(10**9, None, 0.0)
    assert bucket.wait_s(1, 60, 0.0) == 0.0
