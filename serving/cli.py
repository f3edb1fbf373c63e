"""`serval`: the command line. Every error of the user's is one line on stderr; 2 is a wrong setting, 1 anything else."""

import functools
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import benchmarks.load
import k8s.cli
from protocol.errors import ConfigError, ServalError
from serving import cli_security, cost_cli, models_cli, plan_cli
from serving.config import ServalConfig, given, load, parse_settings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Serval serves large language models with prefill and decode apart.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def cluster_config(
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; flags win over it.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder. Default: the embedded SmolLM2-135M-Instruct.")
    ] = None,
    prefill: Annotated[int | None, typer.Option(help="Prefill workers.")] = None,
    decode: Annotated[int | None, typer.Option(help="Decode workers.")] = None,
    http_port: Annotated[int | None, typer.Option(help="OpenAI HTTP port; 0 is any free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0 is any free one.")] = None,
    link_port: Annotated[int | None, typer.Option(help="Port that workers dial; 0 is any free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Worker k's /metrics is on this + 1 + k; 0 is any free one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="KV cache of one worker, such as 1GiB.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens in one KV block.")] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Prompt tokens computed in one step at most.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of one worker.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="How workers are chosen: prefix_aware, least_loaded or round_robin.")
    ] = None,
    ray: Annotated[bool | None, typer.Option("--ray/--no-ray", help="Run the workers as Ray Serve deployments.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as decode.max_waiting=64.")
    ] = None,
) -> ServalConfig:
    """Lays the flags over the file. Raises ConfigError."""
    flags = {
        "model": model,
        "cluster.prefill": prefill,
        "cluster.decode": decode,
        "cluster.metrics_port": metrics_port,
        "engine.threads": threads,
        "cluster.ray": ray,
        "router.http_port": http_port,
        "router.grpc_port": grpc_port,
        "router.link_port": link_port,
        "router.policy": policy,
        "engine.dtype": dtype,
        "engine.kv_memory_bytes": kv_memory,
        "engine.block_size": block_size,
        "engine.max_batch_tokens": chunk_size,
    }
    return load(config, given(flags) | parse_settings(setting or []))


def with_cluster_flags(command: Callable[[ServalConfig], None]) -> Callable[..., None]:
    """Gives `command` the flags of `cluster_config` and calls it with the result."""

    @functools.wraps(cluster_config)
    def run(**flags: Any) -> None:
        command(cluster_config(**flags))

    run.__doc__ = command.__doc__
    return run


@app.command(name="up")
@with_cluster_flags
def up(config: ServalConfig) -> None:
    """Start a cluster on this machine and keep it running until Ctrl-C."""
    from serving.up import up as run

    raise typer.Exit(run(config))


@app.command(name="config")
@with_cluster_flags
def show_config(config: ServalConfig) -> None:
    """Print the settings in effect as YAML, defaults included."""
    sys.stdout.write(config.to_yaml())


@app.command(name="chat")
def start_chat(
    question: Annotated[str | None, typer.Argument(help="One question. Without it: a conversation.")] = None,
    url: Annotated[str, typer.Option(help="The cluster's HTTP address.")] = "http://127.0.0.1:8000",
    ca: Annotated[
        Path | None, typer.Option(envvar="SERVAL_CA", help="PEM file of the authority that signed the cluster's certificate.")
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="SERVAL_API_KEY", help="Better in the environment: others see flags.")] = "",
    model: Annotated[str, typer.Option(help="Default: the model that the cluster serves.")] = "",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the cluster's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Talk to a running cluster."""
    from serving.chat import chat
    from serving.chat_client import ChatOptions, Cluster

    raise typer.Exit(chat(Cluster(url, ca, api_key), question, ChatOptions(model, system, temperature, max_tokens)))


app.add_typer(cli_security.certs, name="certs")
app.add_typer(cli_security.keys, name="keys")
app.add_typer(models_cli.models, name="models")
app.add_typer(k8s.cli.app, name="k8s")
app.command(name="plan")(plan_cli.plan)
app.command(name="cost")(cost_cli.cost)
app.command(name="bench")(benchmarks.load.run)


@app.command(name="follow")
def follow(
    leader: Annotated[str, typer.Option(help="HOST:PORT where the worker waits: its engine.split_address.")],
    rank: Annotated[int, typer.Option(min=1, help="Which of the processes this is; the worker itself is 0.")],
    model: Annotated[
        Path | None, typer.Option(help="The model's folder on this host. Default: where the worker has it.")
    ] = None,
) -> None:
    """Be one of the processes that share a worker's model, on another host. Ends with the worker; SERVAL_SPLIT_KEY must be its."""
    from engine.split.follower import follow as run
    from telemetry import logs

    logs.configure(f"rank-{rank}")
    run(leader, rank, model.expanduser() if model is not None else None)


@app.command(name="doctor")
def examine(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what this machine offers, and what that means."""
    from serving.doctor import doctor

    raise typer.Exit(doctor(as_json))


@app.command()
def version() -> None:
    """Print the version."""
    print(f"serval {importlib.metadata.version('serval')}")


def main() -> int:
    """The console script."""
    try:
        return int(app(standalone_mode=False) or 0)
    except typer.TyperException as error:
        # Without a command the help is printed already, and the message is empty.
        message = error.format_message()
        return _fail(message, EXIT_USAGE) if message else EXIT_USAGE
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except ServalError as error:
        return _fail(str(error), EXIT_FAILED)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED


def _fail(message: str, status: int) -> int:
    print(f"serval: error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
