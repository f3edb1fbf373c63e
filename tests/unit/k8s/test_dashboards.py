"""Dashboards and rules: made of metrics that exist, in a form that Grafana and Prometheus take; alerts fire when they must."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.config import SloConfig
from k8s.dashboards import WASTE, dashboards
from k8s.promql import Queries, UnknownMetric, series
from k8s.rules import groups
from protocol.errors import ConfigError
from router.accounting import Spent
from telemetry.catalogue import catalogue
from tests.unit.k8s.k8s_support import all_objects, deployment, of_kind

ROOT = Path(__file__).parents[3]
SLO = SloConfig()


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: series("request", "total"), "there is no metric serval_request"),
        (lambda: series("requests", "bucket"), "serval_requests is a counter: it has no _bucket"),
        (lambda: series("requests", "total", color="red"), "serval_requests has no label color"),
        (lambda: Queries("5m").rate("requests", "pool"), "serval_requests has no label pool"),
        (lambda: Queries("5m").gauge("requests"), "serval_requests is a counter"),
    ],
)
def test_what_does_not_exist_cannot_be_asked_for(ask: Any, says: str) -> None:
    with pytest.raises(UnknownMetric, match=says):
        ask()


def test_every_panel_and_rule_is_made_of_metrics() -> None:
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    known = {f"{family.name}{suffix}" for family in catalogue().values() for suffix in suffixes[family.kind]}
    expressions = [
        target["expr"] for board in dashboards(SLO) for panel in panels(board.to_json()) for target in panel["targets"]
    ]
    expressions += [rule["expr"] for group in groups(SLO) for rule in group["rules"]]
    used = {name for text in expressions for name in re.findall(r"\bserval_\w+", text)}
    assert used <= known
    assert len(used) > 35


def test_what_goes_wrong_without_an_outcome_of_its_own_is_on_a_dashboard() -> None:
    targets = [target["expr"] for board in dashboards(SLO) for panel in panels(board.to_json()) for target in panel["targets"]]
    shown = set(re.findall(r"\bserval_\w+", " ".join(targets)))
    wrong = {f"serval_{name}_total" for name in ("kv_transfer_failures", "kv_digest_mismatches", "kv_slots_quarantined")}
    wrong |= {f"serval_{name}_total" for name in ("kv_zones_renewed", "worker_losses", "router_stalls", "retries", "sheds")}
    assert wrong | {"serval_pairs_avoided", "serval_scaling_decisions_total"} <= shown


def test_each_family_is_catalogued_with_its_labels() -> None:
    found = catalogue()
    assert found["serval_requests"].labels == {"role", "worker", "outcome", "tenant"}
    assert (found["serval_generation_tokens"].kind, found["serval_moe_assignments"].kind) == ("counter", "counter")
    assert found["serval_inter_token_latency_seconds"].kind == "histogram"
    assert found["serval_time_to_first_token_seconds"].labels >= {"tenant"}


def test_panels_fill_the_grid_without_overlap() -> None:
    for board in dashboards(SLO):
        made = board.to_json()["panels"]
        assert len({panel["id"] for panel in made}) == len(made)
        for one, other in itertools.combinations([panel["gridPos"] for panel in made], 2):
            apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in made)


def test_grafana_knows_every_field() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's schema, to read the dashboards with")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    def lost(said: Any, read: Any, path: str = "") -> list[str]:
        if isinstance(said, dict):
            found = [f"{path}.{name}" for name in said if name not in read and said[name] not in (None, "", [], {}, False, 0)]
            return found + [one for name in said if name in read for one in lost(said[name], read[name], f"{path}.{name}")]
        if isinstance(said, list):
            return [one for index, value in enumerate(said) for one in lost(value, read[index], f"{path}[{index}]")]
        return [] if said == read else [f"{path}: {said!r} is read as {read!r}"]

    for board in dashboards(SLO):
        made = board.to_json()
        assert lost(made, json.loads(JSONEncoder().encode(Dashboard.from_json(made)))) == []


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    alerts = {rule["alert"]: rule for group in groups(SLO) for rule in group["rules"] if "alert" in rule}
    assert {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")} == alerts.keys()
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
        text = (ROOT / "docs" / "runbooks" / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n")
        assert "## Look at" in text
        assert "## Do" in text
        settings = set(re.findall(r"`serval_\w+`", text))
        assert {name.strip("`").removesuffix("_total") for name in settings} <= catalogue().keys()


def test_an_objective_is_a_bound_that_is_measured() -> None:
    with pytest.raises(ConfigError, match=r"kubernetes.slo.ttft_s: must be one of 0.001, "):
        deployment(None, "plain", kubernetes__slo__ttft_s=2.0)
    assert 'le=~"1.0"' in Queries("5m").share_within("time_to_first_token_seconds", 1.0)


def test_they_are_rendered_where_monitoring_is_wanted() -> None:
    found = all_objects("gpu", "plain")
    boards = [one for one in found if one["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert [json.loads(next(iter(one["data"].values())))["title"] for one in boards] == [
        "Serval: Serving",
        "Serval: Pools",
        "Serval: Cost",
    ]
    assert of_kind(found, "PrometheusRule")["serval-rules"]["spec"]["groups"] == groups(SLO)
    assert not {"PrometheusRule", "PodMonitor"} & {one["kind"] for one in all_objects("dev-cpu", "plain")}


def test_a_rehearsal_has_the_same_rules_with_shorter_windows() -> None:
    """Nothing but durations differs, so what a rehearsal shows holds for the real ones."""
    true, short = groups(SLO), groups(SLO.model_copy(update={"window_scale": 1 / 60}))
    objective = {rule["alert"]: rule for rule in short[1]["rules"] if rule["labels"]["burn"] == "fast"}
    assert objective["ServalErrorBudgetBurns"]["for"] == "1000ms"
    assert "[60000ms]" in next(rule["expr"] for rule in short[0]["rules"] if rule["record"] == "serval:errors:share1h")

    def without_durations(made: list[dict[str, Any]]) -> str:
        return re.sub(r"\[\w+\]|\b\d+(ms|s|m)\b", "", json.dumps(made))

    assert short != true
    assert without_durations(short) == without_durations(true)


def promtool(*words: str) -> str:
    """What it complains of; empty: nothing."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups(SLO)}, sort_keys=False))
    return file


def test_prometheus_takes_the_rules(rules: Path) -> None:
    assert promtool("check", "rules", str(rules)) == ""


def test_the_error_budget_alert_fires_in_an_overload_and_clears_after(rules: Path) -> None:
    """Two hours well, half an hour in which half of all requests are refused, and well again: the fast alert ends with the
    overload, the slow one when half an hour has been well."""

    def alert(burn: str, times: str, severity: str) -> dict[str, Any]:
        summary = f"requests fail: the {burn} burn of the error budget, {times} times what 99.00% allows"
        annotations = {"summary": summary, "runbook_url": "docs/runbooks/ServalErrorBudgetBurns.md"}
        return {"exp_labels": {"severity": severity, "burn": burn}, "exp_annotations": annotations}

    def case(at: str, *fires: dict[str, Any]) -> dict[str, Any]:
        return {"eval_time": at, "alertname": "ServalErrorBudgetBurns", "exp_alerts": list(fires)}

    fast, slow = alert("fast", "14.4", "critical"), alert("slow", "6", "warning")
    names = 'role="router", worker="r", tenant="default"'
    series_of = {
        f'serval_requests_total{{{names}, outcome="stop"}}': "0+600x120 72600+600x180",
        f'serval_rejections_total{{{names}, reason="overloaded"}}': "0+0x120 600+600x30 18600+0x150",
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series_of.items()],
        "alert_rule_test": [case("1h50m"), case("2h25m", fast, slow), case("2h40m", slow), case("3h10m")],
    }
    assert differs(rules, test) == ""


def test_routers_that_took_nothing_are_told_of_when_it_is_more_than_a_pause(rules: Path) -> None:
    """Each worker ends one stream at a pause of its router; a deaf one is dialled and left again and again."""
    summary = "a worker ended 6 streams within an hour to routers that took nothing"
    annotations = {"summary": summary, "runbook_url": "docs/runbooks/ServalRouterStalls.md"}
    fires = [{"exp_labels": {"severity": "warning"}, "exp_annotations": annotations}]
    test = {
        "interval": "1m",
        "input_series": [
            {"series": 'serval_router_stalls_total{role="decode", worker="one"}', "values": "0x60 1x120 7x60 7x60"},
            {"series": 'serval_router_stalls_total{role="decode", worker="other"}', "values": "0x60 1x120 1x60 1x60"},
        ],
        "alert_rule_test": [
            {"eval_time": at, "alertname": "ServalRouterStalls", "exp_alerts": alerts}
            for at, alerts in (("1h30m", []), ("3h30m", fires), ("4h30m", []))
        ],
    }
    assert differs(rules, test) == ""


def differs(rules: Path, test: dict[str, Any]) -> str:
    """What promtool finds other than `test` expects; empty: nothing."""
    file = rules.with_name("test.yaml")
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return promtool("test", "rules", str(file))


def test_every_way_to_waste_has_a_line() -> None:
    assert WASTE.keys() == {one.value for one in Spent} - {Spent.SERVED}
