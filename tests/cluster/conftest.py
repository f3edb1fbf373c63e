"""Clusters that tests share: each is started once, on first use, and must stop well in the end."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_harness import ClusterSpec, RunningCluster
from cluster_reference import Reference

from engine.tiny import write_tiny_llama
from serving.embedded_model import embedded_model


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


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    clusters = Clusters(tmp_path_factory.mktemp("clusters"))
    try:
        yield clusters
    finally:
        clusters.stop_all()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_spec(tiny_model: Path) -> ClusterSpec:
    """1P1D. Every prompt moves, whatever its length; the KV cache's books are checked at every step. Room for two long prompts
    in the landing zone, so that requests also wait for it."""
    return ClusterSpec(tiny_model).with_settings(
        engine__dtype="float32",
        engine__kv_memory_bytes="32MiB",
        engine__max_sequences=16,
        engine__max_batch_tokens=256,
        engine__check_integrity=True,
        transfer__landing_bytes="10MiB",
        decode__local_prefill_max_tokens=0,
    )


@pytest.fixture(scope="session")
def two_prefill_spec(tiny_spec: ClusterSpec) -> ClusterSpec:
    """2P1D, in chunks that begin and end within blocks. Round robin: two requests in a row go to different workers."""
    return dataclasses.replace(tiny_spec, prefill=2).with_settings(engine__max_batch_tokens=100, router__policy="round_robin")


@pytest.fixture(scope="session")
def two_decode_spec(tiny_spec: ClusterSpec) -> ClusterSpec:
    """1P2D, in small chunks that begin and end within blocks, round robin."""
    return dataclasses.replace(tiny_spec, decode=2).with_settings(engine__max_batch_tokens=37, router__policy="round_robin")


@pytest.fixture(scope="session")
def tiny_reference(tiny_model: Path) -> Reference:
    return Reference(tiny_model)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """The embedded SmolLM2, converted if it was not yet."""
    return embedded_model()


@pytest.fixture(scope="session")
def embedded_spec(embedded_folder: Path) -> ClusterSpec:
    return ClusterSpec(embedded_folder).with_settings(
        engine__dtype="float32",
        engine__kv_memory_bytes="512MiB",
        engine__max_batch_tokens=384,
        decode__local_prefill_max_tokens=0,
    )


@pytest.fixture(scope="session")
def slow_transfer_spec(tiny_spec: ClusterSpec) -> ClusterSpec:
    """Nothing leaves before the end of compute, both ends look only a few times per second, and nothing is verified."""
    return tiny_spec.with_settings(
        transfer__mode="whole_prompt",
        transfer__digest=False,
        transfer__active_poll_s=0.3,
        transfer__waiting_poll_s=0.3,
        transfer__idle_poll_s=0.3,
    )
