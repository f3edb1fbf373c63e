"""Scaling down by drain: a pool to a number of pods, or one worker. A pod that is asked to end works off what it has: that is what
SIGTERM means to our processes, under Ray Serve what the end of a replica means."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from k8s.live.errors import Changed, ClusterError, NotReady, Refused, Unreachable
from k8s.live.pods import condition, is_over, role_of
from k8s.live.ray_pools import at_most, hosts_of, resized
from k8s.live.readiness import pods_of_a_worker
from k8s.live.target import Deadline, Target, patiently
from k8s.live.view import View
from k8s.objects import ROLES, Manifest

FIRST_TO_GO = {"controller.kubernetes.io/pod-deletion-cost": "-1000"}
"""Annotation by which a Deployment that is made smaller chooses a pod. One that is not ready goes before."""

TRIES = 5
"""Of a change to an object that others change, too."""


def workload_of(target: Target, role: str) -> Manifest:
    """The Deployment or LeaderWorkerSet of a role, or the RayService. Raises Refused if there is none."""
    found = target.workloads()
    for one in found:
        if one["kind"] == "RayService" or role_of(one) == role:
            return one
    there = ", ".join(f"{one['kind']}/{one['metadata']['name']}" for one in found) or "nothing"
    raise Refused(f"cluster {target.name} has no pool {role} in namespace {target.api.namespace}: there is {there}")


def size_of(workload: Manifest, role: str) -> int:
    """Workers that the pool shall have; where it scales, at most."""
    return at_most(workload)[role] if workload["kind"] == "RayService" else int(workload["spec"]["replicas"])


def pods_each(workload: Manifest, role: str) -> int:
    """Of one worker."""
    if workload["kind"] == "RayService":
        return hosts_of(workload)[role]
    return pods_of_a_worker(workload) if workload["kind"] == "LeaderWorkerSet" else 1


def find_pod(target: Target, name: str) -> Manifest:
    """Raises Refused if the cluster has no such pod."""
    pods = target.pods()
    for pod in pods:
        if pod["metadata"]["name"] == name:
            return pod
    there = ", ".join(sorted(pod["metadata"]["name"] for pod in pods)) or "none"
    raise Refused(f"{name} is neither a pool ({', '.join(ROLES)}) nor a pod of cluster {target.name}; its pods: {there}")


def is_last(target: Target, pod: Manifest) -> bool:
    """Whether no other worker of its pool shall be there without it."""
    workload = workload_of(target, role_of(pod))
    return workload["kind"] == "Deployment" and not _ends(pod) and size_of(workload, role_of(pod)) == 1


def shrink_pool(target: Target, role: str, replicas: int, timeout_s: float, view: View) -> None:
    """Makes the pool `replicas` large, and returns when the surplus is gone. Raises Refused if it is smaller already."""
    deadline = Deadline(timeout_s)
    workload = _resized(target, role, replicas)
    pods = replicas * pods_each(workload, role)
    view.line(f"{role} shall have {pods} pods; the others take no new work and finish what they have")
    patience = "Ray's autoscaler takes away a pod whose replica ended, when it was idle for idleTimeoutSeconds"
    hint = patience if workload["kind"] == "RayService" else "a pod may take terminationGracePeriodSeconds"
    with _goes_on(view):
        _wait_for_pods(target, role, pods, deadline, view, hint)


def remove_worker(target: Target, pod: Manifest, timeout_s: float, view: View) -> None:
    """Makes the pod's pool one smaller, by this pod. Raises Refused where whoever makes the pods chooses by itself."""
    role, name, deadline = role_of(pod), pod["metadata"]["name"], Deadline(timeout_s)
    workload = workload_of(target, role)
    if workload["kind"] == "RayService":
        raise Refused(f"Ray Serve chooses which worker ends: `serval k8s drain {role} --replicas N`, or drain {name} --replace")
    if workload["kind"] == "LeaderWorkerSet":
        raise Refused(f"the worker made last ends first: `serval k8s drain {role} --replicas N`, or drain {name} --replace")

    if is_over(pod):
        raise Refused(f"{name} has ended already: it serves nobody, and its pool has or gets another")
    others = [one for one in target.pods() if role_of(one) == role and not _ends(one) and not is_over(one)]
    if _is_asked(pod, len(others) - workload["spec"]["replicas"]):
        view.line(f"{name} was asked to end before: it takes no new work and finishes what it has")
    else:
        for other in others:
            if other["metadata"]["name"] != name and not _is_ready(other):
                raise Refused(
                    f"{other['metadata']['name']} is not ready, and would go before {name}: wait for it, or --replace"
                )
        target.api.patch(pod, {"metadata": {"annotations": FIRST_TO_GO}})
        _resized(target, role, size_of(workload, role) - 1)
        view.line(f"{name} takes no new work and finishes what it has; {role} is one smaller")
    with _goes_on(view):
        _wait_until_gone(target, pod, deadline, view)


def replace_worker(target: Target, pod: Manifest, timeout_s: float, view: View) -> None:
    """Drains the pod, and its pool gets another. As far as the disruption budget allows, which is waited for."""
    deadline = Deadline(timeout_s)
    name = pod["metadata"]["name"]
    while True:
        try:
            target.api.evict(pod)
            break
        except Unreachable as error:
            if deadline.is_over:
                raise NotReady(f"{name} may not be taken away within {timeout_s:g} s: {error}") from error
            view.line(f"waiting: {error}")
            deadline.pause()
    view.line(f"{name} takes no new work and finishes what it has; another takes its place")
    with _goes_on(view):
        _wait_until_gone(target, pod, deadline, view)


def _is_asked(pod: Manifest, surplus: int) -> bool:
    """Whether a drain before this one has asked: to make the pool smaller once more would take another worker with it. `surplus`:
    pods that Kubernetes has yet to end."""
    return _ends(pod) or (surplus > 0 and FIRST_TO_GO.items() <= (pod["metadata"].get("annotations") or {}).items())


@contextmanager
def _goes_on(view: View) -> Iterator[None]:
    """Around a wait: who interrupts it stops no drain."""
    try:
        yield
    except KeyboardInterrupt:
        view.line("interrupted: what was asked to end goes on ending; the same command again waits for it")
        raise


def _resized(target: Target, role: str, replicas: int) -> Manifest:
    """The workload, after the pool was made smaller. Raises Refused if that is no scaling down."""
    for left in reversed(range(TRIES)):
        workload = workload_of(target, role)
        if (size := size_of(workload, role)) < replicas:
            raise Refused(
                f"{role} has {size} workers, fewer than {replicas}: set kubernetes.{role}.replicas and apply to scale up"
            )
        try:
            changed = target.api.patch(workload, {"spec": _spec(workload, role, replicas)})
            _allow(target, role, replicas * pods_each(workload, role))
            return changed
        except Changed:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _spec(workload: Manifest, role: str, replicas: int) -> dict[str, Any]:
    return resized(workload, role, replicas) if workload["kind"] == "RayService" else {"replicas": replicas}


def _allow(target: Target, role: str, pods: int) -> None:
    """A budget that says how many pods must be there (under Ray) must not count on those that go: nobody could be evicted."""
    budget = target.api.get("policy/v1", "PodDisruptionBudget", f"{target.name}-{role}")
    if budget and budget["spec"].get("minAvailable", 0) >= pods:
        target.api.patch(budget, {"spec": {"minAvailable": max(0, pods - 1)}})


def _wait_for_pods(target: Target, role: str, replicas: int, deadline: Deadline, view: View, hint: str) -> None:
    told = -1
    while True:
        found = [pod for pod in patiently(target.pods, deadline, view.line) if role_of(pod) == role and not is_over(pod)]
        if len(found) <= replicas:
            return
        if len(found) != told:
            told = len(found)
            view.line(f"{told} pods of {role} are left, {sum(map(_ends, found))} of them draining")
        if deadline.is_over:
            raise NotReady(f"{role} still has {told} pods after {deadline.timeout_s:g} s, and shall have {replicas}: {hint}")
        deadline.pause()


def _wait_until_gone(target: Target, pod: Manifest, deadline: Deadline, view: View) -> None:
    def look() -> Manifest | None:
        return target.api.get("v1", "Pod", pod["metadata"]["name"])

    while (now := patiently(look, deadline, view.line)) and now["metadata"]["uid"] == pod["metadata"]["uid"]:
        if deadline.is_over:
            raise _still_there(now, deadline)
        deadline.pause()


def _still_there(pod: Manifest, deadline: Deadline) -> ClusterError:
    name = pod["metadata"]["name"]
    if _ends(pod):
        return NotReady(
            f"{name} still drains after {deadline.timeout_s:g} s: its longest answer may take cluster.drain_timeout_s"
        )
    return NotReady(
        f"{name} was not asked to end within {deadline.timeout_s:g} s: another pod of its pool may have gone instead"
    )


def _is_ready(pod: Manifest) -> bool:
    return condition(pod.get("status") or {}, "Ready").get("status") == "True"


def _ends(pod: Manifest) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))
