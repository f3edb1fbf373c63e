"""The whole configuration of a cluster: each package's settings, composed; one YAML file and flags, and a flag wins."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from decode.config import DecodeConfig
from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from planner.scaling_config import ScalingConfig
from prefill.config import PrefillConfig
from protocol.errors import ConfigError
from protocol.tls import PeerTlsFiles
from router.config import RouterConfig
from serving.config_errors import one_line
from serving.model_folder import embedded_folder
from serving.settings_yaml import parse
from telemetry.config import TracingConfig
from worker.config import HealthConfig, LinkConfig

BYTES = TypeAdapter(ByteSize)

KUBERNETES = "kubernetes"
"""The group of settings that is k8s/'s own (k8s/config.py)."""


class ClusterConfig(BaseModel):
    """Which processes there are, where they listen, and how patient the launcher is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill: int = Field(1, ge=1, le=64, description="Prefill workers.")
    decode: int = Field(1, ge=1, le=64, description="Decode workers.")
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address that every process listens on. Loopback, unless told otherwise."
    )
    metrics_port: int = Field(
        9100,
        ge=0,
        le=65535 - 128,
        description="Worker k serves /metrics on this port + 1 + k, prefill workers first. 0: any free ports. "
        "The router's metrics are on its HTTP port.",
    )
    worker_port: int = Field(
        0,
        ge=0,
        le=65535 - 128,
        description="Worker k serves gRPC to other workers on this port + k, prefill workers first. 0: any free ones. A fixed one "
        "is for firewalls and network policies.",
    )
    tls: PeerTlsFiles | None = Field(
        None,
        description="Certificates by which the processes know each other, and without which they let nobody in "
        "(docs/security.md). None: plain text and no questions.",
    )
    ray: bool = Field(
        False, description="Run the workers as Ray Serve deployments, which Ray restarts, instead of plain processes."
    )
    start_timeout_s: float = Field(
        600, gt=0, description="Seconds until every worker must have joined the router. Large models load for minutes."
    )
    drain_timeout_s: float = Field(
        30, ge=0, description="Seconds that open requests are given to finish before the cluster stops."
    )
    stop_timeout_s: float = Field(
        10, gt=0, description="Seconds between asking a process to end and killing it, after its drain."
    )
    deaths_per_minute: int = Field(
        5,
        ge=1,
        description="Deaths of one process within a minute at which the launcher gives up: what dies so often will go on dying. "
        "Higher where processes are killed on purpose.",
    )
    silence_timeout_s: float = Field(
        20.0,
        gt=0,
        description="Seconds without a good answer to a health check after which the local launcher kills a process and starts "
        "another: it stands still, or says that it cannot go on. Longer than a busy machine keeps a process waiting.",
    )
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Of every process: DEBUG, INFO, WARNING or ERROR."
    )


class ServalConfig(BaseModel):
    """Everything that a cluster can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(
        description="A Hugging Face folder (config.json, safetensors, tokenizer.json). Not given: the embedded model."
    )
    cluster: ClusterConfig = ClusterConfig()
    router: RouterConfig
    scaling: ScalingConfig | None = Field(
        None,
        description="How the pools follow the load; cluster.prefill and cluster.decode are what they begin with. Under Ray they "
        "then grow and shrink; elsewhere the decision is in /metrics for whoever scales (docs/planner.md). None: they stay.",
    )
    engine: EngineConfig = EngineConfig()
    prefill_engine: dict[str, Any] = Field(
        {},
        description="Settings of `engine` that are others on prefill workers, such as max_batch_tokens or tensor_parallel_size: "
        "the two pools may be split differently. What shapes KV (dtype, block_size) and speculation must be the same.",
    )
    decode_engine: dict[str, Any] = Field({}, description="Settings of `engine` that are others on decode workers; likewise.")
    prefill: PrefillConfig = PrefillConfig()
    decode: DecodeConfig = DecodeConfig()
    transfer: TransferConfig = TransferConfig()
    link: LinkConfig = LinkConfig()
    health: HealthConfig = HealthConfig()
    tracing: TracingConfig = TracingConfig()

    def engine_of(self, pool: str) -> EngineConfig:
        """The settings of the engines of prefill or decode workers."""
        others = {"prefill": self.prefill_engine, "decode": self.decode_engine}[pool]
        # As pairs that were set: what was not keeps its default, and all rules between settings are looked at again.
        return EngineConfig.model_validate(self.engine.model_dump(exclude_unset=True) | others) if others else self.engine

    @model_validator(mode="after")
    def _pools_can_be_made(self) -> Self:
        for pool in ("prefill", "decode"):
            try:
                self.engine_of(pool)
            except ValidationError as error:
                raise ValueError(f"{pool}_engine.{one_line(error, EngineConfig)}") from error
        return self

    @model_validator(mode="after")
    def _waits_end_inside_out(self) -> Self:
        """Who waits for an answer waits longer than the answer may take: otherwise it comes to nobody, and landing slots are
        set apart that need not be."""
        waits = {
            "transfer.barrier_timeout_s": self.transfer.barrier_timeout_s,
            "prefill.abort_timeout_s": self.prefill.abort_timeout_s,
            "decode.abort_timeout_s": self.decode.abort_timeout_s,
        }
        for (inner, inner_s), (outer, outer_s) in itertools.pairwise(waits.items()):
            if inner_s >= outer_s:
                raise ValueError(f"{outer}: must be more than {inner} ({inner_s:g} s), which it waits for, not {outer_s:g} s")
        proof_s = self.transfer.write_timeout_s + self.transfer.barrier_timeout_s
        if self.transfer.renew_after_s <= proof_s:
            raise ValueError(
                f"transfer.renew_after_s: must be more than transfer.write_timeout_s and transfer.barrier_timeout_s together "
                f"({proof_s:g} s), not {self.transfer.renew_after_s:g} s"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(file: Path | None, flags: Mapping[str, Any]) -> ServalConfig:
    """Reads `file` and lays `flags` (dotted name → value) over it.

    Raises ConfigError with one line that names the first wrong setting.
    """
    settings = read_settings(file) if file else {}
    # One file serves both ways to run a cluster; what this group says is checked by whoever reads it.
    settings.pop(KUBERNETES, None)
    put_settings(settings, flags)
    return compose(settings)


def put_settings(settings: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Lays `flags` (dotted name → value) over `settings`. None is a value: what a file has set is switched off by it. Raises
    ConfigError."""
    for name, value in flags.items():
        _put(settings, name, value)


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a command line, on which None is what nobody gave."""
    return {name: value for name, value in flags.items() if value is not None}


def compose(settings: dict[str, Any], model_is_here: bool = True) -> ServalConfig:
    """The configuration of nested `settings`, which are changed. Without `model_is_here` its folder lies on another machine, and
    is not looked for. Raises ConfigError with one line that names the first wrong setting."""
    folder = _choose_model(settings) if model_is_here else _model_elsewhere(settings)
    _share_settings(settings, folder)
    _read_sizes(settings)
    try:
        return ServalConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(one_line(error, ServalConfig)) from error


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`engine.block_size=32` → {"engine.block_size": 32}; values are YAML."""
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair}: must be NAME=VALUE, for example engine.block_size=32")
        try:
            settings[name] = parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: {text!r} is not a YAML value") from error
    return settings


def read_settings(file: Path) -> dict[str, Any]:
    """What a YAML file says, as it is. Raises ConfigError naming the file when it is no mapping."""
    try:
        settings = parse(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a text file"
        raise ConfigError(f"{file}: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: must be a mapping of settings")
    return settings


def _put(settings: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        settings = group_of(settings, group)
    settings[last] = value


def _choose_model(settings: dict[str, Any]) -> Path:
    """The model's folder. The embedded model's may not be there yet; any other must be."""
    given = settings.get("model")
    if given is None:
        folder = embedded_folder()
    elif isinstance(given, str | Path):
        folder = Path(given).expanduser().resolve()
        if folder != embedded_folder() and not (folder / "config.json").is_file():
            raise ConfigError(f"model: {folder} is not a Hugging Face model folder (it has no config.json)")
    else:
        raise ConfigError(f"model: must be the path of a folder, not {given!r}")
    settings["model"] = folder
    return folder


def _model_elsewhere(settings: dict[str, Any]) -> Path:
    given = settings.get("model")
    if not isinstance(given, str | Path) or not Path(given).is_absolute():
        raise ConfigError(f"model: must be the absolute path of the model's folder where the workers run, not {given!r}")
    settings["model"] = Path(given)
    return Path(given)


def _share_settings(settings: dict[str, Any], folder: Path) -> None:
    """What several packages must agree on is said once, and what follows from several workers on one machine is set."""
    cluster = group_of(settings, "cluster")
    router = group_of(settings, "router")
    router.setdefault("model", folder.name)
    if Path(router.get("model_dir") or folder) != folder:
        raise ConfigError(f"router.model_dir: must be left out, or be the same as model ({folder})")
    router["model_dir"] = folder
    if "host" in cluster:
        router.setdefault("host", cluster["host"])
    engine = group_of(settings, "engine")
    # torch would take every core for every worker, and they would only wait for each other.
    engine.setdefault("threads", 1)
    if engine.get("max_model_len") is not None:  # what clients are told is what workers hold
        router.setdefault("max_model_len", engine["max_model_len"])


def _read_sizes(settings: dict[str, Any]) -> None:
    """`1GiB` is as good as 1073741824 wherever a setting counts bytes."""
    for group_name, group in settings.items():
        if not isinstance(group, dict):
            continue
        for name, value in group.items():
            if str(name).endswith("_bytes") and isinstance(value, str):
                try:
                    group[name] = int(BYTES.validate_python(value))
                except ValidationError as error:
                    raise ConfigError(f"{group_name}.{name}: must be a size like 512MiB or 1GiB, not {value!r}") from error


def group_of(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The nested settings of that name, which are made if there are none. Raises ConfigError."""
    group = settings.setdefault(name, {})
    if group is None:  # `engine:` with nothing below it
        group = settings[name] = {}
    if not isinstance(group, dict):
        raise ConfigError(f"{name}: must be a mapping of settings")
    return group
