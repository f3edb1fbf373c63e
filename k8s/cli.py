"""`serval k8s`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from k8s.config import Flavour
from k8s.deployment import load, overlays
from k8s.objects import to_yaml
from k8s.render import objects, write
from serving.config import parse_settings

app = typer.Typer(help="Clusters on Kubernetes.", no_args_is_help=True)


@app.callback()
def kubernetes() -> None:
    """Clusters on Kubernetes: manifests, and what operates them."""


@app.command(name="render")
def render(
    config: Annotated[Path | None, typer.Option(help="YAML file with settings, `kubernetes` among them; flags win.")] = None,
    overlay: Annotated[str | None, typer.Option(help=f"Settings that come with Serval: {', '.join(overlays())}.")] = None,
    flavour: Annotated[Flavour | None, typer.Option(help="rayservice (needs KubeRay) or plain.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Where the objects are.")] = None,
    image: Annotated[str | None, typer.Option(help="Image of every pod, with its tag or digest.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as kubernetes.decode.replicas=4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Without it all goes to standard output.")] = None,
) -> None:
    """Write the manifests of a cluster: for reading, for git, and for `kubectl apply -k FOLDER`."""
    flags: dict[str, Any] = {
        "kubernetes.flavour": flavour,
        "kubernetes.namespace": namespace,
        "kubernetes.image.name": image,
    }
    deployment = load(config, overlay, flags | parse_settings(setting or []))
    if out is None:
        sys.stdout.write(to_yaml(objects(deployment)))
        return
    for path in write(deployment, out):
        typer.echo(path, err=True)
