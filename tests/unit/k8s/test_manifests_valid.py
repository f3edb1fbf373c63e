"""The manifests are what Kubernetes and the operators take, and those in the repository are those that are rendered."""

import functools
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from k8s.generate import HERE, stale
from k8s.objects import to_yaml
from tests.unit.k8s.k8s_support import CLAIMS, SHARED, all_objects, as_deployments, each_deployment, of_kind


@functools.cache
def linter() -> ModuleType:
    """The linter beside the repository; its definitions take seconds to read, once."""
    for module in ("kubernetes", "kubernetes_validate", "jsonschema", "referencing"):
        pytest.importorskip(module, reason="the manifests' linter needs it")
    path = SHARED / "tools" / "k8s_lint.py"
    if not path.is_file():
        pytest.skip("the manifests' linter is not beside the repository")
    spec = importlib.util.spec_from_file_location("k8s_lint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load_crds = functools.cache(module.load_crds)  # type: ignore[attr-defined]
    return module


@each_deployment
def test_the_linter_finds_nothing(overlay: str | None, flavour: str, tmp_path: Path, capsys: Any) -> None:
    found = all_objects(overlay, flavour)
    file = tmp_path / "all.yaml"
    file.write_text(to_yaml([*found, *as_deployments(found)]))
    words = ["--crds", str(SHARED / "crds"), "--external", CLAIMS, str(file)]
    status = linter().main(words)
    assert (capsys.readouterr().out.strip(), status) == ("", 0)


@pytest.mark.parametrize("flavour", ["plain", "rayservice"])
def test_nothing_is_wrong_with_what_few_ask_for(flavour: str, tmp_path: Path, capsys: Any) -> None:
    settings = {"kubernetes__monitors": "services", "engine__tensor_parallel_size": 8}
    settings |= {"kubernetes__ray__redis_address": "redis.db:6379", "kubernetes__ray__redis_secret": "redis"}
    found = all_objects("gpu", flavour, **settings)
    file = tmp_path / "all.yaml"
    file.write_text(to_yaml([*found, *as_deployments(found)]))
    status = linter().main(["--crds", str(SHARED / "crds"), "--external", f"{CLAIMS},redis", str(file)])
    assert (capsys.readouterr().out.strip(), status) == ("", 0)


@each_deployment
def test_kubernetes_own_schemas_are_kept_to_the_letter(overlay: str | None, flavour: str) -> None:
    """`kubernetes-validate --strict`, which reads its schemas anew for each object. Custom resources are the linter's."""
    pytest.importorskip("kubernetes_validate", reason="the schemas are its")
    from tests.apiserver.checks import strict_schema
    from tests.apiserver.resources import BUILT_IN

    known = {(one.api_version, one.kind): one for one in BUILT_IN}
    found = all_objects(overlay, flavour)
    count = 0
    for one in [*found, *as_deployments(found)]:
        if resource := known.get((one["apiVersion"], one["kind"])):
            assert [error.message for error in strict_schema(resource).iter_errors(one)] == []
            count += 1
    assert count >= len([one for one in found if "." not in one["apiVersion"].partition("/")[0]]) > 10


def test_the_linter_would_find_a_fault(tmp_path: Path, capsys: Any) -> None:
    found = all_objects("gpu", "plain")
    of_kind(found, "Deployment")["serval-decode"]["spec"]["template"]["spec"]["containers"][0]["resorces"] = {}
    del found[found.index(of_kind(found, "ConfigMap")["serval-config"])]
    file = tmp_path / "all.yaml"
    file.write_text(to_yaml(found))
    assert linter().main(["--crds", str(SHARED / "crds"), "--external", CLAIMS, str(file)]) == 1
    output = capsys.readouterr().out
    assert "resorces" in output
    assert "references ConfigMap/serval-config" in output


def test_the_repository_has_what_is_rendered() -> None:
    assert stale() == [], "run `python -m k8s.generate`"


@each_deployment
def test_kustomize_makes_the_same(overlay: str | None, flavour: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    folder = HERE / "overlays" / overlay / flavour if overlay else HERE / "base" / flavour
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    def by_name(objects: list[dict[str, Any]]) -> dict[str, str]:
        return {f"{one['kind']}/{one['metadata']['name']}": json.dumps(one, sort_keys=True) for one in objects}

    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(all_objects(overlay, flavour))
