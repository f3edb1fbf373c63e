"""Clusters that tests share: each is started once, on first use, and must stop well in the end."""

from pathlib import Path

from cluster_harness import ClusterSpec, RunningCluster


class Clusters:
    """Running clusters by what they are. A test leaves the one it used idle and whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[ClusterSpec, RunningCluster] = {}

    def get(self, spec: ClusterSpec) -> RunningCluster:
        cluster = self._running.get(spec)
        if cluster is None or not cluster.is_running:
            cluster = self._running[spec] = self.start(spec)
        return cluster

    def start(self, spec: ClusterSpec) -> RunningCluster:
        """One that is not shared: whoever starts it stops it."""
        log = self._folder / f"cluster-{len(list(self._folder.iterdir()))}.log"
        return RunningCluster.start(spec, log)

    def forget(self, cluster: RunningCluster) -> None:
        """One that a test has ended in its own way."""
        del self._running[cluster.spec]

    def stop_all(self) -> None:
        failures = []
        for cluster in self._running.values():
            cluster.ask_to_stop()  # all at once: they need not wait for each other
        for cluster in self._running.values():
            try:
                cluster.stop()
            except AssertionError as error:
                failures.append(str(error))
        assert not failures, "\n".join(failures)
