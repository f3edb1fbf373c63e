"""What became of one pod, and why it is not ready: read off its status and its latest warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.objects import PREFIX, Manifest

HINTS = {
    "ErrImagePull": "the image cannot be pulled",
    "ImagePullBackOff": "the image cannot be pulled",
    "InvalidImageName": "the image's name is none",
    "ErrImageNeverPull": "the image is not on the node",
    "CreateContainerConfigError": "the container cannot be made",
    "CreateContainerError": "the container cannot be made",
    "CrashLoopBackOff": "the process ends again and again",
}
"""What a container's waiting reason means."""

TALKATIVE = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons that say nothing: the pod's events do."""

LONGEST = 240
"""Characters of somebody else's message."""

Warnings = Mapping[str, Sequence[Manifest]]
"""Events of type Warning by the uid of what they are about, the latest last."""


@dataclass(frozen=True)
class PodState:
    """`why`: in words, empty when it is ready. `is_draining`: it was asked to end and still works off what it has."""

    name: str
    role: str
    phase: str
    is_ready: bool
    is_draining: bool
    restarts: int
    node: str
    why: str


def pod_state(pod: Manifest, warnings: Warnings) -> PodState:
    metadata, status = pod["metadata"], pod.get("status") or {}
    is_draining = bool(metadata.get("deletionTimestamp"))
    is_ready = condition(status, "Ready").get("status") == "True" and not is_draining
    containers = status.get("containerStatuses") or []
    return PodState(
        name=metadata["name"],
        role=role_of(pod),
        phase=status.get("phase") or "Pending",
        is_ready=is_ready,
        is_draining=is_draining,
        restarts=sum(one.get("restartCount", 0) for one in containers),
        node=(pod.get("spec") or {}).get("nodeName") or "",
        why="" if is_ready else "draining" if is_draining else _why(pod, warnings.get(metadata.get("uid", ""), ())),
    )


def role_of(one: Manifest) -> str:
    return str((one["metadata"].get("labels") or {}).get(f"{PREFIX}/component", ""))


def is_over(pod: Manifest) -> bool:
    """Whether its processes have ended for good. What a node threw out stays as an object, long after another took its place."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def condition(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Of that type; empty if there is none."""
    return next((one for one in status.get("conditions") or [] if one.get("type") == name), {})


def shortened(message: str) -> str:
    words = " ".join(message.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}…"


def _why(pod: Manifest, warnings: Sequence[Manifest]) -> str:
    status = pod.get("status") or {}
    scheduled = condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"no node takes it: {shortened(scheduled.get('message') or scheduled.get('reason') or 'no reason was given')}"
    latest = shortened(warnings[-1].get("message") or "") if warnings else ""
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if found := _of_container(container, latest):
            return found
    if status.get("phase") == "Failed":
        return f"it failed: {shortened(status.get('message') or status.get('reason') or 'no reason was given')}"
    return latest or ("it runs and is not ready yet" if status.get("phase") == "Running" else "it starts")


def _of_container(container: Mapping[str, Any], latest: str) -> str:
    """Empty: nothing is the matter with it."""
    state = container.get("state") or {}
    ended = (container.get("lastState") or {}).get("terminated") or state.get("terminated") or {}
    if waiting := state.get("waiting"):
        reason = waiting.get("reason") or ""
        if reason in TALKATIVE:
            return latest
        hint, message = HINTS.get(reason, reason or "its container waits"), shortened(waiting.get("message") or latest)
        return f"{hint}: {_end(ended) if reason == 'CrashLoopBackOff' and ended else message}".removesuffix(": ")
    if ended and ended.get("exitCode"):
        return f"it ended and was started again: {_end(ended)}"
    return ""


def _end(ended: Mapping[str, Any]) -> str:
    """How a process ended, in its own last words where it left some."""
    if ended.get("reason") == "OOMKilled":
        return "it needed more memory than its limit"
    words = shortened(ended.get("message") or "")
    return f"exit status {ended.get('exitCode')}" + (f", {words}" if words else "")
