"""Finds out whether a port is free before anything is started on it."""

import socket

from protocol.errors import ConfigError

ROUTER_PORTS = ("http_port", "grpc_port", "link_port")
"""The settings of a router that are ports."""


def require_free(host: str, port: int, field: str) -> None:
    """Raises ConfigError naming `field` when something listens on the port. Port 0 means any free one.

    Another program can still take the port before we do; then the process that needs it fails with the same words.
    """
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a connection that lingers in TIME_WAIT does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise cannot_listen(field, host, port, error) from error


def cannot_listen(field: str, host: str, port: int, error: OSError) -> ConfigError:
    """Of a port that `field` chose."""
    return ConfigError(f"{field}: cannot listen on {host}:{port}: {error.strerror or error}")


def any_free_port(host: str) -> int:
    """A port that nothing listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
