"""Applying a cluster: all objects in order, then what is no longer rendered goes, then the wait until it serves."""

import math
from collections.abc import Sequence

from k8s.container import grace_s, pool_of
from k8s.deployment import Deployment
from k8s.live.api import Api
from k8s.live.errors import ClusterError, NotReady, Unfinished
from k8s.live.preview import Change
from k8s.live.target import Deadline, Target, patiently
from k8s.live.view import View
from k8s.objects import FIELD_MANAGER, ROLES, Manifest

PAST = {"create": "created", "change": "changed", "keep": "unchanged", "delete": "deleted"}

AGAIN = "the same command again completes the rest"


def namespace_of(deployment: Deployment) -> Manifest:
    """The cluster's namespace, with what its pods need to be allowed: RDMA's IPC_LOCK is more than `baseline` lets through."""
    level = "privileged" if deployment.kubernetes.rdma else "baseline"
    labels = {"pod-security.kubernetes.io/enforce": level, "app.kubernetes.io/managed-by": FIELD_MANAGER}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": deployment.kubernetes.namespace, "labels": labels},
    }


def carry_out(api: Api, changes: Sequence[Change], view: View) -> None:
    """Makes the changes, one after the other. Each is whole or not at all. Raises Unfinished, which says what stands."""
    done = 0
    try:
        for change in changes:
            _make(api, change)
            done += 1
            view.line(f"{change.label} {PAST[change.action]}")
    except ClusterError as error:
        raise Unfinished(error, _what_stands(changes, done)) from error
    except KeyboardInterrupt:
        view.line(f"interrupted: {_what_stands(changes, done)}")
        raise


def _make(api: Api, change: Change) -> None:
    if change.wanted is not None:
        api.apply(change.wanted, force=change.force)
    elif change.before is not None:
        api.delete(change.before)


def _what_stands(changes: Sequence[Change], done: int) -> str:
    if not done:
        return f"nothing was changed; {AGAIN}"
    rest = ", ".join(change.label for change in changes[done:][:5]) + (", …" if len(changes) - done > 5 else "")
    return f"{done} of {len(changes)} objects stand, up to {changes[done - 1].label}; not yet: {rest or 'none'}; {AGAIN}"


def wait_until_ready(target: Target, timeout_s: float, view: View) -> None:
    """Raises NotReady at the deadline, or sooner when Kubernetes itself has given up, and says what stands in the way."""
    deadline = Deadline(timeout_s)
    try:
        while not (state := patiently(target.state, deadline, view.line)).is_ready:
            view.show(state)
            if state.is_hopeless or deadline.is_over:
                after = "Kubernetes gave up" if state.is_hopeless else f"not ready within {timeout_s:g} s"
                problems = "; ".join(state.problems()) or "there are no workloads"
                raise NotReady(f"all objects stand, and {after}: {problems}")
            deadline.pause()
        view.show(state)
    except KeyboardInterrupt:
        view.line("interrupted: all objects stand, and pods go on starting; `serval k8s status` shows how far they are")
        raise


def patience_s(deployment: Deployment) -> int:
    """Seconds that a whole rollout may take: pods of a role after one another, each starting when its predecessor has ended."""
    longest = 0
    for role in ROLES:
        pool = pool_of(deployment, role)
        longest = max(longest, pool.replicas * (pool.start_timeout_s + grace_s(deployment, role)))
    return math.ceil(longest) + 60
