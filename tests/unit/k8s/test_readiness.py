"""What is not ready and why, read off objects; and what an answer of the API server means, in a sentence."""

from typing import Any

import pytest

from k8s.live.errors import Changed, Conflict, Forbidden, Refused, Unreachable, from_status
from k8s.live.kinds import MADE
from k8s.live.pods import pod_state
from k8s.live.readiness import cluster_state
from k8s.render import objects
from tests.unit.k8s.k8s_support import deployment, each_deployment, of_kind


def pod(**status: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": "decode"}
    return {"metadata": {"name": "serval-decode-a", "uid": "u", "labels": labels}, "spec": {"nodeName": "n"}, "status": status}


def container(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "decode", "restartCount": 2, "state": state.pop("state", {}), "lastState": state}]


def why(found: dict[str, Any], message: str = "") -> str:
    warnings = {"u": [{"message": message}]} if message else {}
    return pod_state(found, warnings).why


@pytest.mark.parametrize(
    ("found", "message", "expected"),
    [
        (pod(phase="Pending"), "", "it starts"),
        (pod(phase="Running"), "", "it runs and is not ready yet"),
        (pod(phase="Running"), "Liveness probe failed", "Liveness probe failed"),
        (
            pod(phase="Failed", reason="Evicted", message="The node was low on memory"),
            "",
            "it failed: The node was low on memory",
        ),
        (
            pod(phase="Pending", containerStatuses=container(state={"waiting": {"reason": "ContainerCreating"}})),
            'MountVolume.SetUp failed for volume "models": claim not found',
            'MountVolume.SetUp failed for volume "models": claim not found',
        ),
        (
            pod(
                containerStatuses=container(
                    state={"waiting": {"reason": "CrashLoopBackOff"}}, terminated={"reason": "OOMKilled", "exitCode": 137}
                )
            ),
            "",
            "the process ends again and again: it needed more memory than its limit",
        ),
        (
            pod(phase="Running", containerStatuses=container(state={"running": {}}, terminated={"exitCode": 1})),
            "",
            "it ended and was started again: exit status 1",
        ),
        (pod(phase="Pending", containerStatuses=container(state={"waiting": {"reason": "Odd"}})), "", "Odd"),
    ],
)
def test_why_a_pod_is_not_ready(found: dict[str, Any], message: str, expected: str) -> None:
    assert why(found, message) == expected


def test_a_ready_pod_has_nothing_to_explain_and_a_draining_one_is_not_ready() -> None:
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    assert (pod_state(ready, {}).is_ready, why(ready)) == (True, "")
    ready["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    state = pod_state(ready, {})
    assert (state.is_ready, state.is_draining, state.why) == (False, True, "draining")


def test_an_old_status_says_nothing_of_the_new_configuration() -> None:
    workload = of_kind(objects(deployment("dev-cpu", "plain")), "Deployment")["serval-decode"]
    workload["metadata"]["generation"] = 2
    workload["status"] = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    state = cluster_state([workload], [ready], [])
    assert not state.is_ready
    assert state.problems() == ["decode 1/1 ready: Kubernetes has not looked at it yet"]
    workload["status"]["observedGeneration"] = 2
    assert cluster_state([workload], [ready], []).is_ready


def test_what_a_rollout_before_this_one_came_to_is_no_reason_to_give_up() -> None:
    workload = of_kind(objects(deployment("dev-cpu", "plain")), "Deployment")["serval-decode"]
    workload["metadata"]["generation"] = 2
    gave_up = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    workload["status"] = {"observedGeneration": 1, "replicas": 1, "conditions": [gave_up]}
    assert not cluster_state([workload], [], []).is_hopeless
    workload["status"]["observedGeneration"] = 2
    assert cluster_state([workload], [], []).is_hopeless


LOOKED = [{"type": "Available", "status": "True"}]


@pytest.mark.parametrize(
    ("status", "is_ready"),
    [
        ({"observedGeneration": 2}, True),
        ({"observedGeneration": 1, "conditions": LOOKED}, False),
        ({"conditions": LOOKED}, True),  # of an older operator, which does not count generations
        ({}, False),
    ],
)
def test_whether_the_operator_has_looked_at_a_leader_worker_set(status: dict[str, Any], is_ready: bool) -> None:
    workload = {
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "serval-decode", "generation": 2, "labels": pod()["metadata"]["labels"]},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 1}},
        "status": {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, **status},
    }
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    state = cluster_state([workload], [ready], [])
    assert state.is_ready == is_ready
    assert is_ready or "operator has not looked at it yet" in state.problems()[0]


def test_an_old_pod_that_drains_is_waited_for() -> None:
    workload = of_kind(objects(deployment("dev-cpu", "plain")), "Deployment")["serval-decode"]
    workload["status"] = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "readyReplicas": 2}
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    assert cluster_state([workload], [ready], []).problems() == ["decode 1/1 ready: 1 pods of the old configuration drain"]


def test_a_ray_service_without_its_operator() -> None:
    service = of_kind(objects(deployment("dev-cpu", "rayservice")), "RayService")["serval"]
    state = cluster_state([service], [], [])
    assert state.problems()[0] == "KubeRay has not looked at the RayService yet: is its operator running?"
    service["status"] = {
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": "False", "message": "no endpoints"}],
    }
    assert cluster_state([service], [], []).problems()[0] == "Ray Serve: no endpoints"
    assert not cluster_state([], [], []).is_ready


@pytest.mark.parametrize(
    ("code", "status", "kind", "message"),
    [
        (409, {"reason": "Conflict", "message": "modified"}, Changed, "was changed by somebody else meanwhile"),
        (409, {"reason": "AlreadyExists", "message": "there"}, Refused, "is refused (409): there"),
        (403, {"message": "exceeded quota: gpus"}, Forbidden, "Deployment/d is forbidden: exceeded quota: gpus"),
        (
            403,
            {"message": "x is attempting to grant RBAC permissions"},
            Forbidden,
            "an administrator must apply access.yaml first",
        ),
        (
            500,
            {"message": "etcd"},
            Unreachable,
            "the API server cannot apply Deployment/d at the moment (500: etcd): try again",
        ),
        (418, {}, Refused, "no reason was given"),
    ],
)
def test_an_answer_in_words(code: int, status: dict[str, Any], kind: type, message: str) -> None:
    error = from_status("apply", "Deployment/d", code, status, "serval-deployer")
    assert type(error) is kind
    assert message in str(error)


def test_two_owners_of_a_field_are_both_named() -> None:
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{who}" using apps/v1', "field": field}
        for who, field in (("ann", ".spec.replicas"), ("bob", ".spec.paused"), ("ann", ".spec.strategy"))
    ]
    error = from_status("apply", "Deployment/d", 409, {"details": {"causes": causes}}, "")
    assert isinstance(error, Conflict)
    assert error.managers == {"ann", "bob"}
    assert "ann owns spec.replicas, spec.strategy and bob owns spec.paused" in str(error)


@each_deployment
def test_every_kind_that_is_rendered_has_its_place_in_the_order(overlay: str | None, flavour: str) -> None:
    found = objects(deployment(overlay, flavour))
    assert {(one["apiVersion"], one["kind"]) for one in found} <= set(MADE)
