"""How this machine's own tools reach the router that they have started, and what is open to whom."""

import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

from serving.config import ServalConfig


def front_url(config: ServalConfig, address: str) -> str:
    """The URL of the router's HTTP at `address`."""
    return f"{'https' if config.router.tls else 'http'}://{address}"


def trust_own(config: ServalConfig) -> ssl.SSLContext | bool:
    """httpx's `verify` for our own router: exactly the certificate that it was given to show, whoever has signed it and
    whatever names it has, for we dial it by the address that it listens on. False: it speaks plain text."""
    if config.router.tls is None:
        return False
    return pinned(config.router.tls.certificate)


def pinned(certificate: Path) -> ssl.SSLContext:
    """Trusts what is in the file and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def exposures(config: ServalConfig) -> Iterator[str]:
    """What others on the network can do because of how this cluster is configured; one line each."""
    router, cluster = config.router, config.cluster
    if not _is_loopback(router.host):
        if router.keys_file is None:
            yield f"whoever reaches {router.host} may ask the model: no keys are configured (router.keys_file)"
        if router.tls is None:
            yield f"whoever is on the way to {router.host} may read prompts, answers and keys (router.tls)"
    if cluster.tls is None and not (_is_loopback(cluster.host) and _is_loopback(router.host)):
        yield "whoever reaches the workers, or the router's link port, may pose as one of them (cluster.tls)"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
