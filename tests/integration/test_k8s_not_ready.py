"""What is not ready, or does not go, within a wait: each command says why, and a second run completes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.live.target import Deadline
from tests.apiserver.controller import Fate
from tests.apiserver.faults import Fault
from tests.integration.k8s_commands_support import CONFIG, Cluster, cluster_for_tests, completes, need_server, sentence

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with cluster_for_tests(tmp_path) as made:
        yield made


def until_told(cluster: Cluster, *reasons: str) -> None:
    """Until the cluster's own controllers have come so far that each reason can be given."""
    deadline = Deadline(60)
    while not all(reason in " ".join(cluster.target().state().problems()) for reason in reasons):
        assert not deadline.is_over, cluster.target().state().problems()
        deadline.pause()


REASONS: dict[Fate, str] = {
    "image": "the image cannot be pulled: Back-off pulling image",
    "unschedulable": "no node takes it: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    "crash": "the process ends again and again: exit status 2, model: no such folder",
    "secret": 'the container cannot be made: secret "serval-keys" not found',
    "quota": "no pod can be made: exceeded quota: gpus",
    "never": "Readiness probe failed: HTTP probe failed with statuscode: 503",
    "gives up": "no pod became ready in the time that start_timeout_s gives",
}


@pytest.mark.parametrize(
    "fates", [("image", "unschedulable", "crash"), ("never", "secret", "quota"), ("gives up",)], ids="-".join
)
def test_at_the_deadline_it_says_what_is_not_ready_and_why(cluster: Cluster, fates: tuple[Fate, ...]) -> None:
    _, controller = need_server(cluster)
    controller.fates |= dict(zip(("decode", "prefill", "router"), fates, strict=False))
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    until_told(cluster, *(REASONS[fate] for fate in fates))
    done = cluster.serval("apply", *CONFIG, "--timeout", "0")
    assert done.status == 3
    assert "all objects stand, and " in sentence(done)
    status = cluster.serval("status")
    assert status.status == 3
    for role, fate in zip(("decode", "prefill", "router"), fates, strict=False):
        assert f"{role} 0/1 ready: " in sentence(done)
        assert REASONS[fate] in sentence(done)
        assert REASONS[fate].partition(":")[0] in " ".join(status.out.split())
    controller.fates.clear()


def test_serves_own_word_on_an_application_that_does_not_run(cluster: Cluster) -> None:
    _, controller = need_server(cluster)
    controller.fates["decode"] = "unschedulable"
    words = ("--create-namespace", "--overlay", "dev-cpu")
    assert cluster.serval("apply", *words, "--no-wait").status == 0
    until_told(cluster, "is DEPLOYING", REASONS["unschedulable"])
    done = cluster.serval("apply", *words, "--timeout", "0")
    assert done.status == 3
    assert (
        "Ray Serve's application serval is DEPLOYING: DecodeWorker is UPDATING (1 replicas that have taken more than 30s)"
        in sentence(done)
    )
    assert "no node takes it: " in sentence(done)


def test_a_deletion_that_a_finalizer_holds_says_so_and_a_second_run_completes(cluster: Cluster) -> None:
    assert cluster.serval("apply", *CONFIG, "--no-wait").status == 0
    held = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "serval", "finalizers": ["example.com/load-balancer"]}}
    cluster.put(held)
    done = cluster.serval("delete", "--yes", "--timeout", "15")
    assert done.status == 3
    assert "not all is gone within 15 s: Service/serval (held by the finalizer example.com/load-balancer)" in sentence(done)
    api = cluster.target().api
    service = api.get("v1", "Service", "serval")
    assert service is not None
    api.patch(service, {"metadata": {"finalizers": None}})
    assert cluster.serval("delete", "--yes", "--timeout", "60").status == 0
    assert cluster.own() == {}


def test_a_worker_that_its_budget_does_not_let_go(cluster: Cluster) -> None:
    server, _ = need_server(cluster)
    completes(cluster)
    server.faults.on.append(
        Fault("POST", "/eviction", 429, "Cannot evict pod as it would violate the pod's disruption budget.")
    )
    pod = next(pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"])
    done = cluster.serval("drain", pod, "--replace", "--timeout", "1")
    assert done.status == 3
    assert f"{pod} may not be taken away within 1 s: " in sentence(done)
    assert "disruption budget" in sentence(done)


def test_a_worker_is_not_drained_where_another_would_go(cluster: Cluster) -> None:
    _, controller = need_server(cluster)
    completes(cluster)
    well = next(pod["metadata"]["name"] for pod in cluster.pods() if "-decode-" in pod["metadata"]["name"])
    controller.fates["decode"] = "never"
    assert cluster.serval("apply", *CONFIG, "--set", "kubernetes.decode.replicas=2", "--timeout", "1").status == 3
    sick = next(
        pod["metadata"]["name"]
        for pod in cluster.pods()
        if "-decode-" in pod["metadata"]["name"] and pod["metadata"]["name"] != well
    )
    done = cluster.serval("drain", well)
    assert done.status == 1
    assert f"{sick} is not ready, and would go before {well}: wait for it, or --replace" in sentence(done)


def test_a_drain_that_takes_longer_than_the_wait(cluster: Cluster) -> None:
    _, controller = need_server(cluster)
    completes(cluster)
    controller.drain_ticks = 1_000_000
    done = cluster.serval("drain", "decode", "--replicas", "0", "--yes", "--timeout", "2")
    assert done.status == 3
    assert "decode still has 1 pods after 2 s, and shall have 0: a pod may take terminationGracePeriodSeconds" in sentence(done)


@pytest.mark.parametrize(
    "command", [("apply", *CONFIG), ("drain", "decode", "--yes"), ("delete", "--yes")], ids=lambda one: one[0]
)
def test_an_api_server_that_is_away_for_a_while_ends_no_wait(cluster: Cluster, command: tuple[str, ...]) -> None:
    server, _ = need_server(cluster)
    assert cluster.serval("apply", *CONFIG, "--no-wait" if command[0] == "apply" else "--timeout=60").status == 0
    # More than the four tries that every request has.
    server.faults.on.append(Fault("GET", "/pods", 503, "the API server is upgraded", times=6))
    done = cluster.serval(*command, "--timeout", "60")
    assert done.status == 0, done.err
    assert "waiting on: the API server cannot list Pod objects at the moment (503: the API server is upgraded)" in done.err
    if command[0] == "apply":
        server.faults.on[0].times = 1_000_000
        assert cluster.serval(*command, "--timeout", "1").status == 7
