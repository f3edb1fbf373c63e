"""`serval certs` and `serval keys`."""

from pathlib import Path
from typing import Annotated

import typer

certs = typer.Typer(help="TLS certificates.", no_args_is_help=True)
keys = typer.Typer(help="API keys of clients.", no_args_is_help=True)

KeysFileOption = Annotated[Path, typer.Option(help="The file that router.keys_file names.")]


@certs.command(name="dev")
def make_certificates(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made if it is not there.")],
    host: Annotated[list[str] | None, typer.Option(help="Another name or address of the front; may be repeated.")] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days for which the set is valid.")] = 30,
) -> None:
    """Make a set of certificates to try TLS with, and print the settings that use it."""
    from serving.certificates import make_development_set

    settings = make_development_set(folder, host or [], days)
    print(settings, end="")
    place = folder.expanduser().absolute()
    typer.echo(f"# serval up --config {place / 'serval.yaml'}; clients trust {place / 'front-ca.pem'}", err=True)


@keys.command(name="new")
def new_key(
    name: Annotated[str, typer.Option(help="Tells this key apart in logs and lists.")],
    tenant: Annotated[str, typer.Option(help="Whose limits it shares.")],
    file: KeysFileOption,
) -> None:
    """Make a key and print it, once: the file gets its hash."""
    from serving.keys import add_key

    print(add_key(file, name, tenant))


@keys.command(name="list")
def list_keys(file: KeysFileOption) -> None:
    """List the file's keys by name."""
    from serving.keys import list_keys as lines

    for line in lines(file):
        print(line)
