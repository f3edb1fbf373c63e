"""One cluster behind an API server: its name, and what there is of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from k8s.live.api import Api
from k8s.live.errors import Forbidden, Refused, Unreachable
from k8s.live.kinds import MADE, WORKLOADS, is_made_by_us, ours
from k8s.live.readiness import ClusterState, cluster_state
from k8s.objects import ROLES, Manifest

WARNINGS = "type=Warning"
Found = TypeVar("Found")

POLL_S = 0.5
"""Between two looks at a cluster that changes: four small lists each."""


@dataclass(frozen=True)
class Target:
    """The cluster called `name` in the API server's namespace."""

    api: Api
    name: str

    def own(self) -> list[Manifest]:
        """Everything of it that we made, in the order in which it came to be."""
        return [one for api_version, kind in MADE for one in self._of_kind(api_version, kind)]

    def has_namespace(self) -> bool:
        """As far as whoever asks may know: a right is missing later where it matters. Raises Refused where it is going."""
        try:
            found = self.api.get("v1", "Namespace", self.api.namespace)
        except Forbidden:
            return True
        if found and found["metadata"].get("deletionTimestamp"):
            raise Refused(f"namespace {self.api.namespace} is being deleted: nothing can be made there until it is gone")
        return found is not None

    def workloads(self) -> list[Manifest]:
        return [one for api_version, kind in MADE if kind in WORKLOADS for one in self._of_kind(api_version, kind)]

    def pods(self) -> list[Manifest]:
        return self.api.list("v1", "Pod", labels=f"serval/cluster={self.name}")

    def state(self) -> ClusterState:
        workloads, pods = self.workloads(), self.pods()
        try:
            events = self.api.list("v1", "Event", fields=WARNINGS)  # last: what they are about is there
        except Forbidden:  # reasons are missing then, and nothing else
            events = []
        return cluster_state(workloads, pods, events, ROLES)

    def _of_kind(self, api_version: str, kind: str) -> list[Manifest]:
        if not self.api.knows(api_version, kind):
            return []
        return [one for one in self.api.list(api_version, kind, labels=ours(self.name)) if is_made_by_us(one)]


class Deadline:
    """The end of a wait."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s
        self.timeout_s = timeout_s

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def pause(self) -> None:
        """Until the next look, or the end."""
        time.sleep(max(0.0, min(POLL_S, self._end - time.monotonic())))


def patiently(look: Callable[[], Found], deadline: Deadline, say: Callable[[str], None]) -> Found:
    """What `look` finds, within a wait: an API server that is away for a while (its own upgrade, a broken connection) ends no wait
    of half an hour. Raises Unreachable at the deadline."""
    told = False
    while True:
        try:
            return look()
        except Unreachable as error:
            if deadline.is_over:
                raise
            if not told:
                say(f"waiting on: {error}")
            told = True
            deadline.pause()
