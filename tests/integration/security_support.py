"""For the security tests: certificates, also bad ones, a router with TLS and keys, and whoever wants in."""

import contextlib
import datetime
import shutil
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from protocol.tls import PeerTlsFiles, TlsFiles, TlsIdentity
from router.config import RouterConfig
from router.router import BoundPorts, Router
from serving import certificates
from serving.certificates import make_development_set
from serving.keys import add_key
from telemetry.metrics import Metrics
from tests.integration.router_support import MODEL, WAIT_S, FakeWorker, positional_answer, write_model_folder

PROMPT = "a prompt that belongs to nobody else"
ANSWER = "Hello the stop again! "


def peer_files(folder: Path) -> PeerTlsFiles:
    """The cluster's files of a development set; `.of_role(...)` picks one."""
    return PeerTlsFiles(certificate=folder / "{role}.pem", key=folder / "{role}.key", ca=folder / "cluster-ca.pem")


def front_files(folder: Path) -> TlsFiles:
    return TlsFiles(certificate=folder / "front.pem", key=folder / "front.key")


def expired_set(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A set whose certificates were valid until yesterday."""
    with patch.context() as patched:
        patched.setattr(certificates, "CLOCK_SKEW", datetime.timedelta(days=3))
        make_development_set(folder, days=-1)
    return folder


@dataclass
class Secure:
    """A started router with TLS everywhere and a keys file. `folder` has the certificates that it uses."""

    folder: Path
    keys_file: Path
    key: str = field(repr=False)
    router: Router
    ports: BoundPorts
    metrics: Metrics

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports.http}"

    def http(self, key: str | None = "", ca: Path | None = None) -> httpx.AsyncClient:
        """A client on connections of its own. `key` empty: the good one; None: none at all."""
        shown = self.key if key == "" else key
        headers = {} if shown is None else {"Authorization": f"Bearer {shown}"}
        trust = ssl.create_default_context(cafile=ca or self.folder / "front-ca.pem")
        return httpx.AsyncClient(base_url=self.url, headers=headers, verify=trust, timeout=WAIT_S, trust_env=False)

    async def ask(self, key: str | None = "", ca: Path | None = None, **more: Any) -> httpx.Response:
        """One completion over a new connection."""
        async with self.http(key, ca) as http:
            body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4, **more}
            return await http.post("/v1/completions", json=body)

    def channel(self, ca: Path | None = None) -> grpc.aio.Channel:
        trust = grpc.ssl_channel_credentials((ca or self.folder / "front-ca.pem").read_bytes())
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.ports.grpc}", trust, options=options)

    def worker(self, role: str = "decode", certificate_of: Path | None = None, shows: str | None = None) -> FakeWorker:
        """A worker that shows the certificate of `shows` (its own role) from another set, or the router's own."""
        files = peer_files(certificate_of or self.folder).of_role(shows or role)  # type: ignore[arg-type]
        tls = TlsIdentity(files, "cluster.tls")
        return FakeWorker(self.ports.link, role, answer=positional_answer(ANSWER), tls=tls)


@contextlib.asynccontextmanager
async def secure(tmp_path: Path, **config: Any) -> AsyncIterator[Secure]:
    """A router alone: workers are for the test to bring."""
    folder, keys_file = tmp_path / "certs", tmp_path / "keys.yaml"
    make_development_set(folder)
    key = add_key(keys_file, "first", "research")
    settings: dict[str, Any] = {
        "model": MODEL,
        "model_dir": write_model_folder(tmp_path / "model"),
        "http_port": 0,
        "grpc_port": 0,
        "link_port": 0,
        "worker_wait_s": 0.2,
        "worker_return_s": 0.2,
        "tls": front_files(folder),
        "link_tls": peer_files(folder).of_role("router"),
        "keys_file": keys_file,
        **config,
    }
    metrics = Metrics("router", "router-0")
    router = Router(RouterConfig(**settings), metrics)
    running = Secure(folder, keys_file, key, router, await router.start(), metrics)
    try:
        yield running
    finally:
        await router.stop(1)


def replace_set(folder: Path, other: Path) -> None:
    """What an operator does: new files take the old ones' places, one after the other."""
    for file in other.iterdir():
        new = folder / f".{file.name}.new"
        shutil.copy(file, new)
        new.replace(folder / file.name)
