"""`serval certs dev`: a set of certificates for a try, not for a service: nobody guards its authorities and nobody renews it."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigError
from protocol.tls import PeerRole, dns_name

DAYS = 30
CLOCK_SKEW = datetime.timedelta(hours=1)
"""Certificates are valid from so long ago on: machines' clocks differ."""

FRONT_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class _Issued:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def make_development_set(folder: Path, hosts: Sequence[str] = (), days: int = DAYS) -> str:
    """Writes two authorities' certificates, one per role of the cluster and the front's, which is for this machine and `hosts`.
    Returns the settings that use them, as YAML, which are in the folder's serval.yaml too.

    The authorities' keys are never written, so nobody can add to the set; made again, every file of it is replaced. Raises
    ConfigError.
    """
    cluster, front = _authority("Serval development cluster", days), _authority("Serval development front", days)
    files = {"cluster-ca.pem": _pem(cluster.certificate), "front-ca.pem": _pem(front.certificate)}
    for role in get_args(PeerRole):
        files |= _files(role, _sign(cluster, [dns_name(role)], days, both_ways=True))
    files |= _files("front", _sign(front, [*FRONT_NAMES, *hosts], days, both_ways=False))
    folder = folder.expanduser().absolute()
    settings = _settings(folder)
    files["serval.yaml"] = settings.encode()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            write_private(folder / name, content)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error
    return settings


def write_private(file: Path, content: bytes) -> None:
    """Replaces the file in one step; only its owner can read it, from the first byte on."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    new.replace(file)


def _authority(name: str, days: int) -> _Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(subject, subject, key, days).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return _Issued(key, builder.sign(key, hashes.SHA256()))


def _sign(authority: _Issued, names: Sequence[str], days: int, both_ways: bool) -> _Issued:
    """A certificate for a server of these names; `both_ways`: for the same process as a client too."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if both_ways else [])]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(subject, authority.certificate.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(signer, critical=False)
    )
    return _Issued(key, builder.sign(authority.key, hashes.SHA256()))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _files(name: str, issued: _Issued) -> dict[str, bytes]:
    key = issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {f"{name}.pem": _pem(issued.certificate), f"{name}.key": key}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _settings(folder: Path) -> str:
    def of(name: str) -> dict[str, str]:
        return {"certificate": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}

    cluster = {**of("{role}"), "ca": str(folder / "cluster-ca.pem")}
    return yaml.safe_dump({"cluster": {"tls": cluster}, "router": {"tls": of("front")}}, sort_keys=False, width=1000)
