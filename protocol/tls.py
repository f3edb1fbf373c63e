"""TLS towards clients and between Serval's processes: which files, and how they are used and replaced.

Between processes both sides show a certificate that the cluster's own authority has signed, and what a process may do follows
from the DNS name in its certificate, ROLE.serval.internal: whoever dials expects the name of the role, wherever the process
runs, and whoever is dialled looks up the caller's (protocol/peer_guard.py).
"""

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import grpc
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, field_validator

from protocol.errors import ConfigError
from protocol.file_stamp import stamp_of

logger = logging.getLogger(__name__)

PeerRole = Literal["router", "prefill", "decode"]

TRUST_DOMAIN = "serval.internal"
"""Not a name that any DNS server knows: it says who a process is, not where."""


def dns_name(role: PeerRole) -> str:
    """The name in a certificate that makes its holder a process of `role`."""
    return f"{role}.{TRUST_DOMAIN}"


class TlsFiles(BaseModel):
    """A server's certificate. The files may be replaced at any time; new connections get the new ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Path = Field(description="PEM file: the certificate, then those that lead to its authority.")
    key: Path = Field(description="PEM file: the certificate's private key, not encrypted. Readable by the process alone.")

    @field_validator("*")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        """Processes of one cluster need not share a working folder."""
        return path.expanduser().absolute()


class PeerTlsFiles(TlsFiles):
    """What one process shows to the others, and whom it believes. `{role}` in a path stands for router, prefill or decode, so
    that processes of one machine share one setting."""

    ca: Path = Field(
        description="PEM file: the authority of the cluster's certificates. Of this cluster alone: whoever it signs is let in."
    )

    def of_role(self, role: PeerRole) -> Self:
        """The files of a process of `role`."""
        paths = {name: Path(str(path).replace("{role}", role)) for name, path in self}
        return self.model_copy(update=paths)


class TlsIdentity:
    """The content of the files, read again when they change. Safe from any thread.

    Raises ConfigError, with `setting` in front, when the files do not make an identity at the start. Later a set that does not
    fit together (one is replaced before the other) is logged once, and the last good one stays in use.
    """

    def __init__(self, files: TlsFiles, setting: str) -> None:
        self._files = files
        self._setting = setting
        self._lock = threading.Lock()
        self._stamp = stamp_of(self._paths)
        self._material = _read(files, setting)
        self._stamp_after_reading()
        self.version = 0
        """Grows when the files' content was replaced."""

    def __repr__(self) -> str:
        return f"TlsIdentity({self._setting}, {self._files.certificate}, version {self.version})"

    def expires_at(self) -> float:
        """When the certificate in use ends, in Unix time."""
        self.refresh()
        return x509.load_pem_x509_certificate(self._material.certificate).not_valid_after_utc.timestamp()

    def refresh(self) -> bool:
        """Reads the files if they have changed. True when there is a new certificate."""
        with self._lock:
            stamp = stamp_of(self._paths)
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            try:
                material = _read(self._files, self._setting)
            except ConfigError as error:
                logger.warning("the certificate in use stays: %s", error)
                return False
            self._stamp_after_reading()
            self._material = material
            self.version += 1
            logger.info("%s: the certificate was replaced", self._setting)
            return True

    def server_credentials(self, on_handshake: Callable[[], None]) -> grpc.ServerCredentials:
        """For one gRPC server. With an authority the peer has to show a certificate of it. `on_handshake` is called on a thread
        of gRPC's for each connection, before it is known whether it will be accepted."""

        shown = self.version

        def fetch() -> Any:
            nonlocal shown
            on_handshake()
            self.refresh()
            if shown == self.version:  # several servers may share an identity: each asks for itself
                return None
            shown = self.version
            return self._configuration()

        demands_certificate = self._material.ca is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration(), fetch, demands_certificate)

    def server_context(self, handshake: type[ssl.SSLObject]) -> ssl.SSLContext:
        """For a server of Python's own. Each connection's `handshake` object takes what the files hold then."""

        def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            self.refresh()
            connection.context = self._material.context

        first = _server_context(self._files)
        first.sslobject_class = handshake
        # Called also for a client that names no server. A key of another kind replaces the old one too, which loading it into
        # the same context would not do.
        first.sni_callback = choose
        return first

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """What to dial with now."""
        self.refresh()
        material = self._material
        return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)

    @property
    def _paths(self) -> list[Path]:
        return [path for _, path in self._files]

    def _stamp_after_reading(self) -> None:
        """Files that were replaced while they were read are read once more."""
        if stamp_of(self._paths) != self._stamp:
            self._stamp = ()

    def _configuration(self) -> Any:
        material = self._material
        return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.ca)


@dataclass(frozen=True)
class _Material:
    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes | None
    context: ssl.SSLContext


def _read(files: TlsFiles, setting: str) -> _Material:
    content: dict[str, bytes] = {}
    for name, path in files:
        try:
            content[name] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{setting}.{name}: {path}: {error.strerror or 'cannot be read'}") from error
    try:
        context = _server_context(files)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{setting}: {files.certificate} and {files.key} are no certificate and its key ({error})") from error
    if "ca" in content:
        try:
            context.load_verify_locations(cadata=content["ca"].decode())
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{setting}.ca: {dict(files)['ca']} holds no certificate in PEM ({error})") from error
    return _Material(content["certificate"], content["key"], content.get("ca"), context)


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 at least: Python's own default
    context.set_alpn_protocols(["http/1.1"])
    # A password: OpenSSL would ask the terminal for an encrypted key's.
    context.load_cert_chain(files.certificate, files.key, password="")
    return context
