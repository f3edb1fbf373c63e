"""What the tests of whole clusters share."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_harness import ClusterSpec
from cluster_reference import Reference
from cluster_shared import Clusters

from engine.tiny import write_tiny_llama
from serving.embedded_model import embedded_model


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
    """With n-grams guessing, for all that is asked of a real model: text, JSON, tool calls."""
    return ClusterSpec(embedded_folder).with_settings(
        engine__dtype="float32",
        engine__kv_memory_bytes="512MiB",
        engine__max_batch_tokens=384,
        engine__speculation="ngram",
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
