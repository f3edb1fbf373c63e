"""The Serve application as Serve's config names it: on a Ray cluster of many machines, one process on each, or all on this one."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving.config import ServalConfig, compose, read_settings
from serving.ray_app import build_application
from serving.roles import Role


class ClusterArguments(BaseModel):
    """`args` of the application in Serve's config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path = Field(description="YAML file with settings, as of `serval up`, at the same place on every machine.")
    routers: str = Field(description="Where workers find routers: host:port, or dns:name:port for all behind the name.")
    hosts: dict[Role, int] = Field({}, description="Machines of one worker, by role, where it is several.")
    split_port: int = Field(0, description="TCP port on which the first of them waits for the others.")


def application(arguments: ClusterArguments) -> Any:
    """Called by Serve, on a machine that need not have the model. How many replicas there are, and what each takes of a machine,
    the config file says."""
    config = compose(read_settings(arguments.config), model_is_here=False)
    return build_application(config, (arguments.routers,), arguments.hosts, arguments.split_port)


class LocalArguments(BaseModel):
    """`args` of the application on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str = Field(description="The whole configuration as JSON.")


def local_application(arguments: LocalArguments) -> Any:
    """Called by Serve for `serval up --ray`."""
    return build_application(ServalConfig.model_validate_json(arguments.config))
