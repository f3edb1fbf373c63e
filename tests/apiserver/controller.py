"""A controller and a node in one: it makes pods of Deployments and RayServices, lets them become ready, and end in time.

What becomes of a pod is its component's fate: ready after some moments, or one of the ways in which pods do not become ready.
"""

import copy
import hashlib
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.apiserver import fields
from tests.apiserver.resources import BUILT_IN, LEADER_WORKER_SET, RAY, Object
from tests.apiserver.routes import is_ready
from tests.apiserver.store import Store

TICK_S = 0.02
COMPONENT = "app.kubernetes.io/component"
GROUP = "group-index"
POD = next(one for one in BUILT_IN if one.kind == "Pod")
EVENT = next(one for one in BUILT_IN if one.kind == "Event")
DEPLOYMENT = next(one for one in BUILT_IN if one.kind == "Deployment")

Fate = Literal["ready", "image", "unschedulable", "crash", "memory", "secret", "quota", "never", "gives up"]

WAITING: dict[str, Object] = {
    "image": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "serval:0.1.0-cpu"'},
    "crash": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"},
    "memory": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"},
    "secret": {"reason": "CreateContainerConfigError", "message": 'secret "serval-keys" not found'},
}
ENDED: dict[str, Object] = {
    "crash": {"exitCode": 2, "reason": "Error", "message": "model: no such folder"},
    "memory": {"exitCode": 137, "reason": "OOMKilled"},
}
UNSCHEDULABLE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


@dataclass
class Controller:
    """A context: it works while it is entered. `fates` by component; `start_ticks` and `drain_ticks`: how long pods take."""

    store: Store
    fates: dict[str, Fate] = field(default_factory=dict)
    start_ticks: int = 2
    drain_ticks: int = 3
    ages: dict[str, int] = field(default_factory=dict)
    most_draining: int = 0
    """Pods that drained at the same time, at most."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Controller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        pause_s = TICK_S
        while not self._stop.wait(pause_s):
            with self.store.locked():
                began = time.monotonic()
                self.tick()
                pause_s = max(TICK_S, 2 * (time.monotonic() - began))  # requests come first, on a busy machine too

    def tick(self) -> None:
        for pod in self.store.of_kind("Pod"):
            if not is_over(pod):
                self._live(pod)
        for workload in self.store.of_kind("Deployment"):
            if not workload["metadata"].get("deletionTimestamp"):
                self._keep(workload)
        for groups in self.store.of_kind("LeaderWorkerSet"):
            if not groups["metadata"].get("deletionTimestamp"):
                self._keep_groups(groups)
        for service in self.store.of_kind("RayService"):
            if not service["metadata"].get("deletionTimestamp"):
                self._keep_ray(service)
        self.store.collect_garbage()

    # ---- pods

    def _live(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        self.ages[uid] = self.ages.get(uid, 0) + 1
        if pod["metadata"].get("deletionTimestamp"):
            self._end(pod)
        elif (fate := self.fates.get(component(pod), "ready")) == "ready":
            if self.ages[uid] >= self.start_ticks and not is_ready(pod):
                self._say(pod, _running(True))
        elif fate == "unschedulable":
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNSCHEDULABLE}
            self._say(pod, {"phase": "Pending", "conditions": [condition]})
        elif fate in WAITING:
            container = {
                "name": "main",
                "ready": False,
                "restartCount": 3 if fate in ENDED else 0,
                "state": {"waiting": WAITING[fate]},
            }
            container |= {"image": "x", "imageID": "", "lastState": {"terminated": ENDED[fate]} if fate in ENDED else {}}
            self._say(pod, {"phase": "Pending", "conditions": [], "containerStatuses": [container]})
        elif not (pod.get("status") or {}).get("conditions"):
            self._say(pod, _running(False))
            self._warn(pod, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")

    def _end(self, pod: Object) -> None:
        """It drains: not ready at once, gone some moments later."""
        uid = pod["metadata"]["uid"]
        if is_ready(pod):
            self._say(pod, _running(False))
            self.ages[uid] = 0
        elif self.ages[uid] >= self.drain_ticks and not pod["metadata"].get("finalizers"):
            self.store.remove(POD, pod)
        draining = [one for one in self.store.of_kind("Pod") if one["metadata"].get("deletionTimestamp")]
        self.most_draining = max(self.most_draining, len(draining))

    def _say(self, pod: Object, status: Object) -> None:
        if pod.get("status") == status:
            return
        metadata = pod["metadata"]
        self.store.change(
            POD, metadata["namespace"], metadata["name"], lambda one: one | {"status": status}, subresource="status"
        )

    def _warn(self, about: Object, reason: str, message: str) -> None:
        metadata = about["metadata"]
        names = {"kind": about["kind"], "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
        event = {"metadata": {"generateName": f"{metadata['name']}."}, "involvedObject": names, "reason": reason}
        event |= {"message": message, "type": "Warning", "lastTimestamp": fields.now()}
        self.store.create(EVENT, metadata["namespace"], event, "kubelet", False)

    def _make(self, owner: Object, template: Object, prefix: str, extra: dict[str, str]) -> None:
        template = copy.deepcopy(template)
        labels = (template["metadata"].get("labels") or {}) | extra
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
        metadata = {"name": f"{prefix}-{uuid.uuid4().hex[:5]}", "labels": labels, "ownerReferences": [reference]}
        spec = template["spec"] | {"nodeName": "node-1"}
        self.store.create(POD, owner["metadata"]["namespace"], {"metadata": metadata, "spec": spec}, "controller", False)

    def _remove(self, pod: Object) -> None:
        self.store.delete(POD, pod["metadata"]["namespace"], pod["metadata"]["name"], {})

    def _pods_of(self, owner: Object) -> list[Object]:
        return [
            one
            for one in self.store.owned_by(owner)
            if one["kind"] == "Pod" and not one["metadata"].get("deletionTimestamp") and not is_over(one)
        ]

    # ---- Deployments

    def _keep(self, workload: Object) -> None:
        spec, fate = workload["spec"], self.fates.get(component(workload), "ready")
        template = {"pod-template-hash": digest(spec["template"])}
        pods = self._pods_of(workload)
        fresh = [pod for pod in pods if template.items() <= pod["metadata"]["labels"].items()]
        old = [pod for pod in pods if pod not in fresh]
        if fate != "quota":
            prefix = f"{workload['metadata']['name']}-{template['pod-template-hash']}"
            for _ in range(spec["replicas"] - len(fresh)):
                self._make(workload, spec["template"], prefix, template)
        surplus = sorted(fresh, key=lambda pod: (is_ready(pod), _cost(pod)))[: max(0, len(fresh) - spec["replicas"])]
        for pod in surplus + (old if all(map(is_ready, fresh)) and len(fresh) >= spec["replicas"] else []):
            self._remove(pod)
        pods = self._pods_of(workload)
        fresh = [pod for pod in pods if template.items() <= pod["metadata"]["labels"].items()]
        conditions = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
        if fate == "quota":
            conditions.append(
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: gpus"}
            )
        if fate == "gives up":
            conditions = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]
        status = {
            "observedGeneration": workload["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(fresh),
        }
        status |= {"readyReplicas": sum(map(is_ready, pods)), "conditions": conditions}
        self._set_status(DEPLOYMENT, workload, status)

    # ---- LeaderWorkerSets

    def _keep_groups(self, groups: Object) -> None:
        """Each group's pods; a group of which one is asked to end goes as a whole, and so do those with the highest numbers."""
        inner, replicas = groups["spec"]["leaderWorkerTemplate"], groups["spec"]["replicas"]
        revision = {"revision": digest(inner)}
        pods = [one for one in self.store.owned_by(groups) if one["kind"] == "Pod"]
        whole = 0
        for number in range(max([replicas, *(int(pod["metadata"]["labels"][GROUP]) + 1 for pod in pods)])):
            own = [pod for pod in pods if pod["metadata"]["labels"][GROUP] == str(number)]
            is_old = any(not revision.items() <= pod["metadata"]["labels"].items() for pod in own)
            if number >= replicas or is_old or any(pod["metadata"].get("deletionTimestamp") for pod in own):
                for pod in own:
                    if not pod["metadata"].get("deletionTimestamp"):
                        self._remove(pod)
                continue
            for index in range(len(own), inner["size"]):
                template = inner["leaderTemplate" if index == 0 else "workerTemplate"]
                self._make(groups, template, f"{groups['metadata']['name']}-{number}-{index}", revision | {GROUP: str(number)})
            whole += len(own) == inner["size"] and all(map(is_ready, own))
        status = {"observedGeneration": groups["metadata"]["generation"], "replicas": replicas, "conditions": []}
        self._set_status(LEADER_WORKER_SET, groups, status | {"readyReplicas": whole, "updatedReplicas": whole})

    # ---- RayServices

    def _keep_ray(self, service: Object) -> None:
        """The head and each group's pods, as many as Serve runs replicas; its application runs when all are ready."""
        cluster = service["spec"]["rayClusterConfig"]
        groups = [("head", 1, cluster["headGroupSpec"])]
        groups += [
            (one["groupName"], one["minReplicas"] * one.get("numOfHosts", 1), one) for one in cluster["workerGroupSpecs"]
        ]
        fates = {
            component({"metadata": group["template"]["metadata"]}): self.fates.get(name, "ready") for name, _, group in groups
        }
        wanted = 0
        for name, replicas, group in groups:
            found = [pod for pod in self._pods_of(service) if pod["metadata"]["labels"]["ray.io/group"] == name]
            for _ in range(replicas - len(found)):
                self._make(service, group["template"], f"{service['metadata']['name']}-{name}", {"ray.io/group": name})
            for pod in sorted(found, key=_cost)[: max(0, len(found) - replicas)]:
                self._remove(pod)
            wanted += replicas
        runs = sum(map(is_ready, self._pods_of(service))) >= wanted and set(fates.values()) == {"ready"}
        application: Object = {"status": "RUNNING" if runs else "DEPLOYING", "serveDeploymentStatuses": {}}
        if not runs:
            application["serveDeploymentStatuses"]["DecodeWorker"] = {
                "status": "UPDATING",
                "message": "1 replicas that have taken more than 30s",
            }
        active = {"rayClusterName": f"{service['metadata']['name']}-x2z", "applicationStatuses": {"serval": application}}
        status = {
            "observedGeneration": service["metadata"]["generation"],
            "activeServiceStatus": active,
            "serviceStatus": "Running" if runs else "",
        }
        self._set_status(RAY, service, status)

    def _set_status(self, resource: Any, one: Object, status: Object) -> None:
        if one.get("status") == status:
            return
        metadata = one["metadata"]
        self.store.change(
            resource, metadata["namespace"], metadata["name"], lambda now: now | {"status": status}, subresource="status"
        )


def is_over(pod: Object) -> bool:
    """As for a real one: its place is taken by another, and it stays as an object."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def component(one: Object) -> str:
    return str((one["metadata"].get("labels") or {}).get(COMPONENT, ""))


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _cost(pod: Object) -> int:
    return int((pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", 0))


def _running(ready: bool) -> Object:
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True" if ready else "False"}]
    container = {"name": "main", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": {"running": {}}}
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [container]}
