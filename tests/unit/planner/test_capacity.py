"""Plans keep what they promise: the SLO, the memory, and the price."""

from dataclasses import replace

import pytest
from planner_support import longcat_setting

from planner.capacity import MAX_BUSY, Slo, kv_tokens_per_gpu, make_plan, plan_decode, tpot_s
from planner.gpus import find_gpu
from planner.model_files import find_model
from planner.speed_curve import speed_curve
from planner.workload import Workload
from protocol.errors import ConfigError

CHAT = Workload.constant(4000, 500, 200.0)


def test_a_plan_keeps_the_slo_and_says_what_it_costs() -> None:
    setting, slo = longcat_setting(), Slo(2.0, 50.0)
    plan = make_plan(setting, CHAT, slo)
    assert plan.prefill.latency_s <= slo.ttft_s and plan.prefill.busy <= MAX_BUSY
    assert plan.decode.latency_s <= 1 / slo.tokens_per_s and plan.decode.busy < 1
    assert plan.usd_per_hour == 2.0 * (plan.prefill.gpus + plan.decode.gpus)
    per_output = plan.usd_per_hour / 3600 / (200 * 500) * 1e6
    assert plan.usd_per_million_output == pytest.approx(per_output)
    assert plan.usd_per_million_output == pytest.approx(plan.decode.usd_per_million + plan.prefill.usd_per_million * 4000 / 500)
    assert plan.prefill.gpus == min(choice.gpus for choice in plan.prefill_choices)
    served = plan.decode.workers * plan.decode.gpus_per_worker * plan.decode.tokens_per_s_per_gpu
    assert served > 200 * 500
    held = plan.decode.requests_per_gpu * CHAT.context
    assert held <= kv_tokens_per_gpu(setting, plan.decode.gpus_per_worker) * 1.001


def test_full_gpus_at_a_hundred_tokens_per_second_cost_what_was_published() -> None:
    """$0.70 at 804 tokens/s/GPU and 100.5 tokens/s; the model's error there is 10%, which at the edge of what is possible moves the
    price more: so it is asked at the speed that it gives for that batch."""
    workload = Workload.constant(5000, 1, 1.0)
    speed = 1 / tpot_s(longcat_setting(), 128, 8.0, 5000.0)
    plan = plan_decode(longcat_setting(), workload, speed, 128)
    assert plan is not None and plan.requests_per_gpu == pytest.approx(8.0, rel=0.01)
    assert 2e6 / 3600 / plan.tokens_per_s_per_gpu == pytest.approx(0.70, rel=0.12)


def test_faster_answers_and_longer_contexts_cost_more() -> None:
    setting = longcat_setting()
    prices = [price.usd_per_million for price in speed_curve(setting, CHAT, (20.0, 50.0, 80.0, 100.0))]
    assert prices == sorted(prices) and prices[-1] > 2 * prices[0]
    long = replace(CHAT, context=4 * CHAT.context)
    assert speed_curve(setting, long, (50.0,))[0].usd_per_million > speed_curve(setting, CHAT, (50.0,))[0].usd_per_million


def test_cached_prompts_need_fewer_gpus() -> None:
    full, half = (make_plan(longcat_setting(cached_share=share), CHAT, Slo(2.0, 20.0)) for share in (0.0, 0.6))
    assert half.prefill.busy * half.prefill.gpus < 0.6 * full.prefill.busy * full.prefill.gpus


def test_a_smaller_model_fits_on_fewer_gpus() -> None:
    setting = longcat_setting(model=find_model("qwen3-235b-a22b"), draft_acceptance=0.0)
    assert min(choice.gpus_per_worker for choice in make_plan(setting, CHAT, Slo(2.0, 20.0)).decode_choices) == 8


@pytest.mark.parametrize(
    ("changed", "workload", "slo", "named"),
    [
        ({}, CHAT, Slo(0.01, 20.0), "slo-ttft: no split keeps 0.01 s"),
        ({}, CHAT, Slo(2.0, 1000.0), "slo-tps: no split keeps 1000 tokens/s"),
        ({"gpu": replace(find_gpu("h800"), memory_bytes=20e9)}, CHAT, Slo(2.0, 20.0), "gpu: longcat-flash"),
    ],
)
def test_what_cannot_be_is_named(changed: dict[str, object], workload: Workload, slo: Slo, named: str) -> None:
    with pytest.raises(ConfigError) as told:
        make_plan(longcat_setting(**changed), workload, slo)
    assert str(told.value).startswith(named)
