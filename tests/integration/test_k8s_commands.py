"""`serval k8s diff`, `apply`, `status`, `drain` and `delete` over real HTTP, from nothing to a cluster and back."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.render import objects
from tests.apiserver.faults import Fault
from tests.integration.k8s_commands_support import PLAIN, Cluster, cluster_for_tests, need_pods, need_server
from tests.unit.k8s.k8s_support import deployment

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")

CONFIG = ("--create-namespace", *PLAIN)
DECODE_3 = ("--set", "kubernetes.decode.replicas=3")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with cluster_for_tests(tmp_path) as made:
        yield made


@pytest.fixture
def applied(cluster: Cluster) -> Cluster:
    """All objects stand; nothing was waited for."""
    done = cluster.serval("apply", *CONFIG, "--no-wait")
    assert done.status == 0, done.err
    return cluster


def ready(cluster: Cluster, *words: str) -> Cluster:
    need_pods(cluster)
    done = cluster.serval("apply", *CONFIG, *words, "--timeout", "60")
    assert done.status == 0, done.err
    return cluster


def test_apply_makes_everything_in_order_and_again_changes_nothing(cluster: Cluster) -> None:
    first = cluster.serval("apply", *CONFIG, "--no-wait")
    assert first.status == 0, first.err
    created = [line.split()[0] for line in first.err.splitlines() if line.endswith("created")]
    kinds = [one.partition("/")[0] for one in created]
    assert kinds[0] == "Namespace"
    assert kinds.index("ConfigMap") > kinds.index("RoleBinding") > kinds.index("Role") > kinds.index("ServiceAccount")
    assert kinds[-3:] == ["Deployment"] * 3
    wanted = {f"{one['kind']}/{one['metadata']['name']}" for one in objects(deployment("dev-cpu", "plain"))}
    assert cluster.own().keys() == wanted == set(created[1:])
    versions = {
        name: one["metadata"]["resourceVersion"] for name, one in cluster.own().items() if not name.startswith("Deployment")
    }
    again = cluster.serval("apply", *CONFIG, "--no-wait")
    assert again.status == 0, again.err
    assert again.err.count("unchanged") == len(wanted)
    after = {
        name: one["metadata"]["resourceVersion"] for name, one in cluster.own().items() if not name.startswith("Deployment")
    }
    assert after == versions


def test_everything_is_ours_by_server_side_apply(applied: Cluster) -> None:
    for name, one in applied.own().items():
        managers = {(entry["manager"], entry["operation"]) for entry in one["metadata"]["managedFields"]}
        assert ("serval", "Apply") in managers, name


def test_apply_waits_until_the_cluster_serves(cluster: Cluster) -> None:
    done = ready(cluster).serval("status", *PLAIN[:2])
    assert done.status == 0, done.out
    for role in ("router", "prefill", "decode"):
        assert any(line.split()[:2] == [role, "1/1"] for line in done.out.splitlines()), done.out


def test_without_its_namespace_nothing_is_made(cluster: Cluster) -> None:
    done = cluster.serval("apply", *PLAIN)
    assert done.status == 1
    assert f"namespace {cluster.namespace} is not there: --create-namespace makes it" in done.err


def test_diff_says_what_apply_would_change_and_changes_nothing(cluster: Cluster) -> None:
    before = cluster.serval("diff", *PLAIN)
    assert before.status == 10
    assert "+kind: Deployment" in before.out
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    same = cluster.serval("diff", *PLAIN)
    assert (same.status, same.out) == (0, "")
    different = cluster.serval("diff", *PLAIN, *DECODE_3, "--set", "engine.max_batch_tokens=4096")
    assert different.status == 10
    lines = different.out.splitlines()
    assert "--- is/Deployment/serval-decode" in lines
    assert "-  replicas: 1" in lines
    assert "+  replicas: 3" in lines
    assert any("max_batch_tokens: 4096" in line and line.startswith("+") for line in lines)
    assert not any("resourceVersion" in line or "managedFields" in line for line in lines)
    assert cluster.serval("diff", *PLAIN).status == 0


def test_what_is_no_longer_rendered_goes_and_nothing_else(applied: Cluster) -> None:
    other = {"metadata": {"name": "yours", "labels": {"serval/cluster": "other", "app.kubernetes.io/managed-by": "serval"}}}
    applied.put({"apiVersion": "v1", "kind": "ConfigMap", **other, "data": {"a": "1"}})
    account = applied.own()["ServiceAccount/serval-router"]
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "serval-router", "uid": account["metadata"]["uid"]}
    labels = {"serval/cluster": "serval", "app.kubernetes.io/managed-by": "serval"}
    made = {"name": "an-operators", "labels": labels, "ownerReferences": [owner]}
    applied.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": made, "data": {"a": "1"}})
    left_over = {"name": "left-over", "labels": labels}
    applied.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": left_over, "data": {"a": "1"}})
    shown = applied.serval("diff", *PLAIN)
    assert shown.status == 10
    assert "--- is/ConfigMap/left-over" in shown.out
    assert applied.serval("apply", *CONFIG, "--no-wait", "--no-prune").err.count("deleted") == 0
    done = applied.serval("apply", *CONFIG, "--no-wait")
    assert [line for line in done.err.splitlines() if line.endswith("deleted")] == ["ConfigMap/left-over deleted"]
    api = applied.target().api
    assert api.get("v1", "ConfigMap", "yours")
    assert api.get("v1", "ConfigMap", "an-operators")


def test_status_for_programs(cluster: Cluster) -> None:
    ready(cluster, *DECODE_3)
    done = cluster.serval("status", "--json")
    assert done.status == 0, done.out
    content = json.loads(done.out)
    assert content["is_ready"] is True
    pools = {pool["role"]: pool for pool in content["pools"]}
    assert {role: (pool["ready"], pool["desired"]) for role, pool in pools.items()} == {
        "router": (1, 1),
        "prefill": (1, 1),
        "decode": (3, 3),
    }
    assert all(pod["is_ready"] and pod["node"] for pod in pools["decode"]["pods"])


def test_status_of_nothing(cluster: Cluster) -> None:
    done = cluster.serval("status")
    assert done.status == 1
    assert f"there is no cluster serval in namespace {cluster.namespace}" in done.err


def test_a_changed_setting_rolls_the_pods_and_the_wait_is_for_the_new_ones(cluster: Cluster) -> None:
    ready(cluster)
    before = {pod["metadata"]["uid"] for pod in cluster.pods()}
    ready(cluster, "--set", "engine.max_batch_tokens=4096")
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in cluster.pods() if not pod["metadata"].get("deletionTimestamp"))


def test_a_pool_is_made_smaller_by_drain_and_apply_puts_it_back(cluster: Cluster) -> None:
    ready(cluster, *DECODE_3)
    done = cluster.serval("drain", "decode", "--replicas", "1", "--timeout", "60")
    assert done.status == 0, done.err
    pods = [pod for pod in cluster.pods() if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "decode"]
    assert len(pods) == 1
    assert "finish what they have" in done.err
    back = cluster.serval("apply", *CONFIG, *DECODE_3, "--timeout", "60")
    assert back.status == 0, back.err
    assert "Deployment/serval-decode changed" in back.err


def test_scaling_up_is_no_drain(applied: Cluster) -> None:
    done = applied.serval("drain", "decode", "--replicas", "7")
    assert done.status == 1
    assert "decode has 1 workers, fewer than 7: set kubernetes.decode.replicas and apply to scale up" in done.err


def test_a_named_worker_drains_and_its_pool_is_one_smaller(cluster: Cluster) -> None:
    ready(cluster, *DECODE_3)
    chosen = [pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"]][1]
    done = cluster.serval("drain", chosen, "--timeout", "60")
    assert done.status == 0, done.err
    left = [pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"]]
    assert (len(left), chosen in left) == (2, False)


def test_a_worker_is_replaced_within_its_disruption_budget(cluster: Cluster) -> None:
    ready(cluster, "--set", "kubernetes.decode.replicas=2")
    chosen = next(pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"])
    done = cluster.serval("drain", chosen, "--replace", "--timeout", "60")
    assert done.status == 0, done.err
    left = [pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"]]
    assert (len(left), chosen in left) == (2, False)


def test_draining_a_whole_pool_asks_first(applied: Cluster) -> None:
    done = applied.serval("drain", "decode", answer="n\n")
    assert done.status == 130
    assert "Drain all 1 pods of decode? Nothing is served then." in done.err
    assert applied.own()["Deployment/serval-decode"]["spec"]["replicas"] == 1


def test_nobody_of_that_name(applied: Cluster) -> None:
    done = applied.serval("drain", "encode")
    assert done.status == 1
    assert "encode is neither a pool (router, prefill, decode) nor a pod of cluster serval; its pods: " in done.err


def test_delete_leaves_nothing_of_ours_and_all_of_others(applied: Cluster) -> None:
    applied.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "yours"}, "data": {"a": "1"}})
    assert applied.serval("delete", answer="n\n").status == 130
    assert applied.own()
    done = applied.serval("delete", "--yes", "--timeout", "60")
    assert done.status == 0, done.err
    assert applied.own() == {}
    assert applied.pods() == []
    assert applied.target().api.get("v1", "ConfigMap", "yours")
    order = [line.split()[0] for line in done.err.splitlines() if " deleted" in line]
    assert [one.partition("/")[0] for one in order[:3]] == ["Deployment"] * 3
    assert order[-1].startswith("ServiceAccount/")
    again = cluster_words(applied.serval("delete", "--yes").err)
    assert again == f"there is nothing of cluster serval in namespace {applied.namespace}"


def cluster_words(text: str) -> str:
    return " ".join(text.split())


def test_the_rights_go_last_and_pods_drain_before(cluster: Cluster) -> None:
    server, controller = need_server(cluster)
    ready(cluster, *DECODE_3)
    controller.drain_ticks = 10
    assert cluster.serval("delete", "--yes", "--timeout", "60").status == 0
    assert controller.most_draining == 5
    deleted = [entry[2] for entry in server.store.history if entry[1] == "DELETED"]
    assert deleted.index("NetworkPolicy") > max(place for place, kind in enumerate(deleted) if kind == "Pod")


def test_the_rayservice_flavour_from_apply_to_delete(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    words = ("--overlay", "dev-cpu", "--flavour", "rayservice", "--create-namespace", "--timeout", "60")
    done = cluster.serval("apply", *words, *DECODE_3)
    assert done.status == 0, done.err
    content = json.loads(cluster.serval("status", "--json").out)
    assert {pool["role"]: pool["ready"] for pool in content["pools"]} == {"head": 1, "router": 1, "prefill": 1, "decode": 3}
    drained = cluster.serval("drain", "decode", "--replicas", "1", "--timeout", "60")
    assert drained.status == 0, drained.err
    service = cluster.own()["RayService/serval"]
    assert service["spec"]["serveConfigV2"].count("num_replicas: 1") == 3
    pod = next(one["metadata"]["name"] for one in cluster.pods() if "-decode-" in one["metadata"]["name"])
    refused = cluster.serval("drain", pod)
    assert refused.status == 1
    assert "Ray Serve chooses which worker ends" in refused.err
    assert cluster.serval("apply", *words, *DECODE_3).status == 0
    # To the other flavour: the RayService goes, Deployments come.
    assert cluster.serval("apply", *CONFIG, "--timeout", "60").status == 0
    assert "RayService/serval" not in cluster.own()
    assert cluster.serval("delete", "--yes", "--timeout", "60").status == 0
    assert [key for key in server.store.objects if key[0] != "Namespace" and key[0] != "Event"] == []


def test_ended_by_its_pipeline_while_it_applies_it_says_what_stands(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    server.faults.on.append(Fault("PATCH", "/services/serval-grpc", 0, hang_s=20))
    process = cluster.start("apply", *CONFIG, "--no-wait")
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "Service/serval created" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=20)[1]
    assert process.returncode == 130, rest
    assert "interrupted: " in rest
    assert "up to Service/serval; not yet: Service/serval-grpc" in rest
    server.faults.on.clear()
    assert cluster.serval("apply", *CONFIG, "--timeout", "60").status == 0


def test_interrupted_while_it_waits_all_stands(cluster: Cluster) -> None:
    _, controller = need_server(cluster)
    controller.fates["decode"] = "never"
    process = cluster.start("apply", *CONFIG)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("ready: "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[1]
    assert process.returncode == 130, rest
    assert "interrupted: all objects stand" in rest
