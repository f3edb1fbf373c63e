"""`serval k8s`.

Exit status: 0 done; 1 refused; 2 a wrong setting; 3 not ready (or not gone) by the deadline; 4 a conflict; 5 forbidden; 6 a kind is
missing; 7 the API server does not answer; 10 `diff` found differences; 130 interrupted.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from k8s.cli_options import (
    REQUEST_TIMEOUT_S,
    Config,
    Context,
    FlavourOption,
    Image,
    Kubeconfig,
    Namespace,
    Overlay,
    RequestTimeout,
    Setting,
    Timeout,
    Yes,
    deployment,
    target,
)
from k8s.live.apply import carry_out, namespace_of, patience_s, wait_until_ready
from k8s.live.delete import delete as delete_all
from k8s.live.drain import find_pod, is_last, remove_worker, replace_worker, shrink_pool, size_of, workload_of
from k8s.live.errors import ClusterError, Missing, NotReady, Refused
from k8s.live.kinds import in_order, label
from k8s.live.pods import role_of
from k8s.live.preview import Change, differences, preview, require_kinds
from k8s.live.readiness import to_json
from k8s.live.view import View, table
from k8s.objects import ROLES, to_yaml
from k8s.render import objects, write

EXIT_DIFFERENT = 10

app = typer.Typer(help="Clusters on Kubernetes.", no_args_is_help=True)


@app.callback()
def kubernetes() -> None:
    """Clusters on Kubernetes: manifests, and what operates them."""


@app.command(name="render")
def render(
    config: Config = None,
    overlay: Overlay = None,
    flavour: FlavourOption = None,
    namespace: Namespace = None,
    image: Image = None,
    setting: Setting = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Without it all goes to standard output.")] = None,
) -> None:
    """Write the manifests of a cluster: for reading, for git, and for `kubectl apply -k FOLDER`."""
    made = deployment(config, overlay, namespace, setting, flavour, image)
    if out is None:
        sys.stdout.write(to_yaml(objects(made)))
        return
    for path in write(made, out):
        typer.echo(path, err=True)


@app.command(name="diff")
def diff(
    config: Config = None,
    overlay: Overlay = None,
    flavour: FlavourOption = None,
    namespace: Namespace = None,
    image: Image = None,
    setting: Setting = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_timeout: RequestTimeout = REQUEST_TIMEOUT_S,
    force_conflicts: Annotated[bool, typer.Option(help="As if `apply` were told so.")] = False,
) -> None:
    """Show what `apply` would change, as the API server itself works it out. Changes nothing; exit status 10 if anything would."""
    made = deployment(config, overlay, namespace, setting, flavour, image)
    with _told():
        there = target(made, kubeconfig, context, request_timeout)
        if not there.has_namespace():
            require_kinds(there.api, objects(made))
            changes = [Change("create", None, one, one) for one in in_order(objects(made))]
        else:
            changes = preview(there, objects(made), force_conflicts)
    is_different = False
    for line in differences(changes):
        is_different = True
        print(line)
    if is_different:
        raise typer.Exit(EXIT_DIFFERENT)


@app.command(name="apply")
def apply(
    config: Config = None,
    overlay: Overlay = None,
    flavour: FlavourOption = None,
    namespace: Namespace = None,
    image: Image = None,
    setting: Setting = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_timeout: RequestTimeout = REQUEST_TIMEOUT_S,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds until it must serve. Default: what a whole rollout may take.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Return when the cluster serves, or when all objects stand.")] = True,
    prune: Annotated[bool, typer.Option(help="Delete what is there and not rendered any more.")] = True,
    create_namespace: Annotated[bool, typer.Option(help="Make the namespace if it is not there.")] = False,
    force_conflicts: Annotated[bool, typer.Option(help="Take over fields that others have set.")] = False,
) -> None:
    """Make a cluster what the settings say, and wait until it serves. Again and again does no harm."""
    made = deployment(config, overlay, namespace, setting, flavour, image)
    with _told(), View() as view:
        there = target(made, kubeconfig, context, request_timeout)
        require_kinds(there.api, in_order(objects(made)))
        if not there.has_namespace():
            if not create_namespace:
                raise Missing(f"namespace {there.api.namespace} is not there: --create-namespace makes it")
            there.api.apply(namespace_of(made))
            view.line(f"Namespace/{there.api.namespace} created")
        changes = [one for one in preview(there, objects(made), force_conflicts) if prune or one.action != "delete"]
        carry_out(there.api, changes, view)
        if wait:
            wait_until_ready(there, patience_s(made) if timeout is None else timeout, view)


@app.command(name="status")
def status(
    config: Config = None,
    overlay: Overlay = None,
    namespace: Namespace = None,
    setting: Setting = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_timeout: RequestTimeout = REQUEST_TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say which pods there are, what is not ready and why. Exit status 3 if anything is not."""
    from rich.console import Console

    with _told():
        there = target(deployment(config, overlay, namespace, setting), kubeconfig, context, request_timeout)
        state = there.state()
        if not state.pools:
            raise Missing(f"there is no cluster {there.name} in namespace {there.api.namespace}: `serval k8s apply` makes it")
    if as_json:
        print(to_json(state))
    else:
        Console(highlight=False).print(table(state))
    if not state.is_ready:
        raise typer.Exit(NotReady.exit_code)


@app.command(name="drain")
def drain(
    what: Annotated[str, typer.Argument(metavar="WORKER|POOL", help="A pod's name, or router, prefill or decode.")],
    replicas: Annotated[int | None, typer.Option(min=0, help="Of a pool: how many stay. Default: none.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Of a pod: another takes its place.")] = False,
    config: Config = None,
    overlay: Overlay = None,
    namespace: Namespace = None,
    setting: Setting = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_timeout: RequestTimeout = REQUEST_TIMEOUT_S,
    timeout: Timeout = 900.0,
    yes: Yes = False,
) -> None:
    """Take a worker, or the surplus of a pool, out of service without losing an answer, and return when it is gone."""
    with _told(), View() as view:
        there = target(deployment(config, overlay, namespace, setting), kubeconfig, context, request_timeout)
        if what in ROLES:
            if replace:
                raise Refused("--replace is for one pod: a pool is replaced by `apply`")
            if not replicas:
                size = size_of(workload_of(there, what), what)
                _ask(f"Drain all {size} pods of {what}? Nothing is served then.", yes)
            shrink_pool(there, what, replicas or 0, timeout, view)
            return
        if replicas is not None:
            raise Refused("--replicas is for a pool: one pod is drained, or with --replace another takes its place")
        pod = find_pod(there, what)
        if replace:
            replace_worker(there, pod, timeout, view)
            return
        if is_last(there, pod):
            _ask(f"Drain the last worker of {role_of(pod)}? Nothing is served then.", yes)
        remove_worker(there, pod, timeout, view)


@app.command(name="delete")
def delete(
    config: Config = None,
    overlay: Overlay = None,
    namespace: Namespace = None,
    setting: Setting = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    request_timeout: RequestTimeout = REQUEST_TIMEOUT_S,
    timeout: Timeout = 900.0,
    yes: Yes = False,
) -> None:
    """Delete a cluster: its pods drain, then all of its objects go. Secrets, volumes and the namespace are yours and stay."""
    with _told(), View() as view:
        there = target(deployment(config, overlay, namespace, setting), kubeconfig, context, request_timeout)
        found = there.own()
        if not found and not there.pods():
            view.line(f"there is nothing of cluster {there.name} in namespace {there.api.namespace}")
            return
        listed = ", ".join(map(label, found))
        _ask(f"Delete cluster {there.name} in namespace {there.api.namespace} at {there.api.address} ({listed})?", yes)
        delete_all(there, found, timeout, view)


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, EOFError):  # a pipeline, not a person who changed their mind
            print(file=sys.stderr)
            raise Refused("nobody is there to answer: --yes does") from error
        raise


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the cluster end the command with their sentence and their own exit status. SIGTERM is Ctrl-C: a pipeline that is
    cancelled says what stands, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except ClusterError as error:
        print(f"serval: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    finally:
        signal.signal(signal.SIGTERM, before)
