"""Deleting a cluster: its pods drain first, with the names and rights that they end with, then everything else goes."""

from collections.abc import Callable, Sequence

from k8s.live.errors import ClusterError, NotReady, Unfinished
from k8s.live.kinds import WORKLOADS, label
from k8s.live.target import Deadline, Target, patiently
from k8s.live.view import View
from k8s.objects import Manifest

AGAIN = "the same command again deletes the rest"


def delete(target: Target, objects: Sequence[Manifest], timeout_s: float, view: View) -> None:
    """Deletes `objects` and returns when they and all pods are gone. Raises NotReady at the deadline, and says what holds them."""
    deadline = Deadline(timeout_s)
    workloads = [one for one in objects if one["kind"] in WORKLOADS]
    others = [one for one in reversed(objects) if one["kind"] not in WORKLOADS]
    try:
        _delete_all(target, workloads, view)
        _wait_until_gone(lambda: [*_still(target.workloads()), *_still(target.pods())], deadline, view)
        _delete_all(target, others, view)
        _wait_until_gone(lambda: _still(target.own()), deadline, view)
    except KeyboardInterrupt:
        view.line(f"interrupted: what was asked to end goes on ending; {AGAIN}")
        raise


def _delete_all(target: Target, objects: Sequence[Manifest], view: View) -> None:
    for done, one in enumerate(objects):
        try:
            target.api.delete(one)
        except ClusterError as error:
            left = ", ".join(label(other) for other in objects[done:])
            raise Unfinished(error, f"still there: {left}; {AGAIN}") from error
        view.line(f"{label(one)} deleted" + (", its pods drain" if one["kind"] in WORKLOADS else ""))


def _wait_until_gone(left: Callable[[], list[str]], deadline: Deadline, view: View) -> None:
    told: list[str] = []
    while found := patiently(left, deadline, view.line):
        if deadline.is_over:
            raise NotReady(f"not all is gone within {deadline.timeout_s:g} s: {', '.join(found)}; {AGAIN}")
        if found != told:
            view.line(f"waiting for {', '.join(found)}")
            told = found
        deadline.pause()


def _still(objects: Sequence[Manifest]) -> list[str]:
    """In words."""
    return [f"{one['kind']}/{one['metadata']['name']}{_held(one)}" for one in objects]


def _held(one: Manifest) -> str:
    finalizers = [name for name in one["metadata"].get("finalizers") or [] if name != "foregroundDeletion"]
    return f" (held by the finalizer {', '.join(finalizers)})" if finalizers else ""
