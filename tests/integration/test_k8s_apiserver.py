"""The tests' API server behaves as a real one: the checks that were made on a kube-apiserver, where they are at hand."""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.apiserver.controller import Controller
from tests.apiserver.server import ApiServer

pytest.importorskip("kubernetes", reason="needs the extra `kubernetes`")
pytest.importorskip("kubernetes_validate", reason="the server's schemas are its")

CONTRACT = Path(__file__).parents[3] / "shared" / "tools" / "contract.py"
DEPENDED_ON = (
    "create_sets_server_metadata",
    "duplicate_create_409",
    "missing_get_404",
    "generate_name",
    "invalid_object_422",
    "unknown_field_strict_400",
    "defaulting",
    "label_selector",
    "merge_patch_null_deletes",
    "strategic_merge_by_container_name",
    "stale_resource_version_409",
    "resource_version_changes_on_write",
    "generation_only_on_spec_change",
    "status_subresource_isolated",
    "scale_subresource",
    "server_side_apply_conflict_409",
    "dry_run_persists_nothing",
    "finalizer_blocks_delete",
    "delete_precondition_uid_409",
    "watch_sees_add_modify_delete",
    "watch_replays_from_resource_version",
    "list_pagination",
    "field_selector",
    "lease_optimistic_lock",
    "owner_reference_gc",
    "eviction_respects_pdb_429",
    "rbac_forbids_403",
)
NOT_DEPENDED_ON = ("crd_schema_enforced",)
"""Its rules in CEL are the API server's own: what we apply to custom resources is held to their schemas elsewhere."""


@pytest.fixture(scope="module")
def contract() -> ModuleType:
    if not CONTRACT.is_file():
        pytest.skip("the checks are not beside the repository")
    spec = importlib.util.spec_from_file_location("contract", CONTRACT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    from kubernetes import client, config

    with ApiServer(operators=()) as server, Controller(server.store):
        config.load_kube_config(str(server.kubeconfig(tmp_path_factory.mktemp("api") / "kubeconfig.yaml")))
        core = client.CoreV1Api()
        core.create_namespace({"metadata": {"name": "contract"}})
        yield core, client.AppsV1Api()


@pytest.mark.parametrize("name", DEPENDED_ON)
def test_it_behaves_as_a_real_one(contract: ModuleType, clients: tuple[Any, Any], name: str) -> None:
    check: Callable[[Any, Any], None] = getattr(contract, name)
    assert why_not(check, clients) is None


def why_not(check: Callable[[Any, Any], None], clients: tuple[Any, Any]) -> str | None:
    """What the check has against the server; None: nothing."""
    from kubernetes.client import ApiException

    try:
        check(*clients)
    except (AssertionError, ApiException) as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_a_server_that_does_not_would_be_noticed(clients: tuple[Any, Any]) -> None:
    def refuted(core: Any, _: Any) -> None:
        assert core.list_namespace().items == []

    def missing(core: Any, _: Any) -> None:
        core.read_namespace("nowhere")

    assert (why_not(refuted, clients) or "").startswith("AssertionError")
    assert (why_not(missing, clients) or "").startswith("NotFoundException: (404)")


def test_every_check_is_either_depended_on_or_not(contract: ModuleType) -> None:
    known = [check.__name__ for check in contract.CHECKS]
    assert sorted(itertools.chain(DEPENDED_ON, NOT_DEPENDED_ON)) == sorted(known)
