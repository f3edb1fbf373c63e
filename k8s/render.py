"""All manifests of one cluster, as objects and as a folder that `kubectl apply -k` takes."""

from collections.abc import Iterator
from pathlib import Path

from k8s import plain, ray
from k8s.access import accounts, config_map, rights
from k8s.deployment import Deployment
from k8s.monitoring import boards, monitors, rules
from k8s.objects import Manifest, dump, to_yaml
from k8s.policies import policies
from k8s.services import disruption_budgets, services
from protocol.errors import ConfigError

KUSTOMIZATION = "kustomization.yaml"


def render(deployment: Deployment) -> dict[str, list[Manifest]]:
    """Objects by the file that they go into, in the order in which they should come to be."""
    flavour = ray if deployment.kubernetes.flavour == "rayservice" else plain
    files = {
        "access.yaml": [*accounts(deployment), *rights(deployment)],
        "config.yaml": [config_map(deployment)],
        "services.yaml": services(deployment),
        "policies.yaml": policies(deployment),
        "disruption.yaml": disruption_budgets(deployment),
        "workloads.yaml": flavour.workloads(deployment),
    }
    if deployment.kubernetes.monitoring:
        files["monitoring.yaml"] = [*monitors(deployment), rules(deployment)]
        files["dashboards.yaml"] = boards(deployment)
    return files


def objects(deployment: Deployment) -> list[Manifest]:
    return [one for file in render(deployment).values() for one in file]


def texts(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """File names and what stands in them."""
    files = render(deployment)
    for name, content in files.items():
        yield name, to_yaml(content)
    yield KUSTOMIZATION, kustomization({"resources": list(files)})


def kustomization(content: dict[str, object]) -> str:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return dump(head | content)


def write(deployment: Deployment, folder: Path) -> list[Path]:
    """Writes the files into `folder`, which is made if it is not there. The paths. Raises ConfigError where it cannot be."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts(deployment):
            (folder / name).write_text(text)
            written.append(folder / name)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}") from error
    return written
