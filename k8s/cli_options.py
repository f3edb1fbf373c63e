"""Options that several commands of `serval k8s` share, and what they say together: which cluster, behind which API server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k8s.config import Flavour
from k8s.deployment import Deployment, load, overlays
from k8s.objects import full_name
from serving.config import given, parse_settings

if TYPE_CHECKING:
    from k8s.live.target import Target

Config = Annotated[Path | None, typer.Option(help="YAML file with settings, `kubernetes` among them; flags win.")]
Overlay = Annotated[str | None, typer.Option(help=f"Settings that come with Serval: {', '.join(overlays())}.")]
FlavourOption = Annotated[Flavour | None, typer.Option("--flavour", help="rayservice (needs KubeRay) or plain.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Where the objects are.")]
Image = Annotated[str | None, typer.Option(help="Image of every pod, with its tag or digest.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as kubernetes.decode.replicas=4.")
]
Kubeconfig = Annotated[Path | None, typer.Option(help="Default: KUBECONFIG, then ~/.kube/config; within a pod its account.")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig. Default: its current one.")]
RequestTimeout = Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds that one request to the API server may take.")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds that the command waits at most.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

REQUEST_TIMEOUT_S = 30.0


def deployment(
    config: Path | None,
    overlay: str | None,
    namespace: str | None,
    setting: list[str] | None,
    flavour: Flavour | None = None,
    image: str | None = None,
) -> Deployment:
    """What the settings say. Raises ConfigError."""
    flags: dict[str, Any] = {
        "kubernetes.flavour": flavour,
        "kubernetes.namespace": namespace,
        "kubernetes.image.name": image,
    }
    return load(config, overlay, given(flags) | parse_settings(setting or []))


def target(made: Deployment, kubeconfig: Path | None, context: str | None, request_timeout_s: float) -> "Target":
    """The cluster that `made` describes, behind the API server that the options name. Raises ConfigError."""
    from k8s.access import DEPLOYER
    from k8s.live.api import Api, connect
    from k8s.live.target import Target

    role = full_name(made, DEPLOYER)
    api = Api(connect(kubeconfig, context), made.kubernetes.namespace, role, request_timeout_s)
    return Target(api, made.kubernetes.name)
