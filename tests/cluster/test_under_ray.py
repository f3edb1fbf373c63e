"""What holds for plain processes holds under Ray Serve: the same answers, the same refusals, the same ends."""

import dataclasses

import pytest
import test_bad_input
import test_same_answer
import test_survives_faults
from cluster_harness import ClusterSpec
from cluster_reference import Reference
from cluster_shared import Clusters

pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def ray_spec(tiny_spec: ClusterSpec) -> ClusterSpec:
    return dataclasses.replace(tiny_spec, ray=True)


async def test_fifty_prompts(clusters: Clusters, ray_spec: ClusterSpec, tiny_reference: Reference) -> None:
    await test_same_answer.test_fifty_prompts(clusters, ray_spec, tiny_reference)
    assert clusters.get(ray_spec).spec.ray


async def test_a_thousand_bad_requests(clusters: Clusters, ray_spec: ClusterSpec, tiny_reference: Reference) -> None:
    await test_bad_input.test_a_thousand_bad_requests(clusters, ray_spec, tiny_reference)
    assert clusters.get(ray_spec).is_running


async def test_kill_of_the_only_prefill_under_load(
    clusters: Clusters, ray_spec: ClusterSpec, tiny_reference: Reference
) -> None:
    await test_survives_faults.TestKilledWorker().test_prefill(clusters, ray_spec, tiny_reference)
    assert clusters.get(ray_spec).is_running


async def test_kill_of_the_only_decode_under_load(clusters: Clusters, ray_spec: ClusterSpec, tiny_reference: Reference) -> None:
    await test_survives_faults.TestKilledWorker().test_the_only_decode(clusters, ray_spec, tiny_reference)
    assert clusters.get(ray_spec).is_running
