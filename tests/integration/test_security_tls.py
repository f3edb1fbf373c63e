"""TLS at every door of a real router, and between workers: who gets in, who does not, and what happens when files change."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol import cluster_pb2, cluster_pb2_grpc, serval_pb2, serval_pb2_grpc
from protocol.peer_guard import PeerGuard
from protocol.peer_stub import PeerStub, dial
from protocol.server import GrpcServer
from protocol.tls import PeerRole, TlsIdentity
from serving.certificates import make_development_set
from tests.integration.router_support import WAIT_S, FakeWorker
from tests.integration.security_support import Secure, expired_set, peer_files, replace_set, secure

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
PREFILL_SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["PrefillService"].full_name


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Secure]:
    async with secure(tmp_path) as one:
        yield one


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A set that looks the same and was signed by others."""
    make_development_set(tmp_path / "foreign")
    return tmp_path / "foreign"


def certificate_shown(port: int) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port), timeout=WAIT_S).encode())


def certificate_in(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


class TestClients:
    async def test_both_fronts_answer_over_tls(self, running: Secure) -> None:
        async with running.worker("prefill"), running.worker("decode"), running.channel() as channel:
            assert (await running.ask()).status_code == 200
            stub: Any = serval_pb2_grpc.ServalStub(channel)
            metadata = [("authorization", f"Bearer {running.key}")]
            info = await stub.GetModelInfo(serval_pb2.GetModelInfoRequest(), metadata=metadata, timeout=WAIT_S)
            assert info.model
        assert running.metrics.value("serval_tls_handshakes_total", surface="http") == 1
        for surface, name in (("front", "front"), ("link", "router")):
            ends = certificate_in(running.folder / f"{name}.pem").not_valid_after_utc.timestamp()
            assert running.metrics.value("serval_certificate_expiry_timestamp_seconds", surface=surface) == ends
        assert running.metrics.value("serval_tls_handshakes_total", surface="grpc") == 1

    async def test_prometheus_is_told_to_come_over_tls(self, running: Secure) -> None:
        async with running.http(None) as http, running.worker("decode"):
            targets = {one["labels"]["role"]: one["labels"] for one in (await http.get("/sd/prometheus")).json()}
        assert targets["router"]["__scheme__"] == "https"
        assert "__scheme__" not in targets["decode"], "workers' /metrics are plain"

    async def test_clients_notice_a_foreign_authority(self, running: Secure, foreign: Path) -> None:
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await running.ask(ca=foreign / "front-ca.pem")
        async with running.channel(foreign / "front-ca.pem") as channel:
            await refused_health(channel)

    async def test_plain_text_gets_nothing(self, running: Secure) -> None:
        async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(f"http://127.0.0.1:{running.ports.http}/health")
        assert running.metrics.value("serval_tls_refusals_total", surface="http") == 1
        for port in (running.ports.grpc, running.ports.link):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
                await refused_health(channel)

    async def test_a_new_certificate_is_shown_to_new_connections(self, running: Secure, foreign: Path) -> None:
        async with running.worker("prefill"), running.worker("decode"), running.http() as old_http, running.channel() as old:
            assert (await old_http.get("/health")).status_code == 200
            await healthy(old)
            before = await asyncio.to_thread(certificate_shown, running.ports.http)
            assert before == certificate_in(running.folder / "front.pem")

            replace_set(running.folder, foreign)

            for port in (running.ports.http, running.ports.grpc):
                shown = await asyncio.to_thread(certificate_shown, port)
                assert shown == certificate_in(foreign / "front.pem") != before
            assert (await running.ask()).status_code == 200
            # What was open stays open.
            assert (await old_http.get("/health")).status_code == 200
            await healthy(old)

    async def test_files_that_do_not_fit_together_change_nothing(self, running: Secure, foreign: Path) -> None:
        before = certificate_in(running.folder / "front.pem")
        (running.folder / "front.pem").write_bytes((foreign / "front.pem").read_bytes())  # and the key is still the old one
        assert await asyncio.to_thread(certificate_shown, running.ports.http) == before
        assert await asyncio.to_thread(certificate_shown, running.ports.grpc) == before
        (running.folder / "front.key").write_bytes((foreign / "front.key").read_bytes())
        assert await asyncio.to_thread(certificate_shown, running.ports.http) == certificate_in(foreign / "front.pem")


class TestLink:
    async def test_workers_join_with_their_own_certificate(self, running: Secure) -> None:
        async with running.worker("prefill"), running.worker("decode"):
            assert running.router.members is not None
            assert {worker.pool for worker in running.router.members.all} == {"prefill", "decode"}

    @pytest.mark.parametrize("role", ["prefill", "decode"])
    @pytest.mark.parametrize("shows", ["router", "prefill", "decode"])
    async def test_a_certificate_of_another_role_does_not_join(self, running: Secure, role: str, shows: str) -> None:
        if role == shows:
            pytest.skip("its own")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with running.worker(role, shows=shows):
                pass
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert running.metrics.value("serval_tls_refusals_total", surface="link") == 1
        assert running.router.members is not None
        assert not running.router.members.all

    async def test_nor_does_a_foreign_an_expired_or_no_certificate(
        self, running: Secure, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expired = expired_set(tmp_path / "expired", monkeypatch)
        bad: dict[str, grpc.aio.Channel] = {"none": dial_as(running, None, "decode")}
        for name, folder in (("foreign", foreign), ("expired", expired)):
            # It believes the router, so that only what it shows is wrong.
            (folder / "cluster-ca.pem").write_bytes((running.folder / "cluster-ca.pem").read_bytes())
            bad[name] = dial_as(running, folder, "decode")
        for name, channel in bad.items():
            async with channel:
                call: Any = cluster_pb2_grpc.RouterLinkStub(channel).Connect(iter([cluster_pb2.FromWorker()]), timeout=WAIT_S)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, name
        assert running.metrics.value("serval_tls_handshakes_total", surface="link") >= len(bad)

    async def test_workers_do_not_believe_a_foreign_router(self, running: Secure, foreign: Path) -> None:
        for name in ("decode.pem", "decode.key"):  # what it shows is right; whom it believes is not
            (foreign / name).write_bytes((running.folder / name).read_bytes())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.worker("decode", foreign).start()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    async def test_a_worker_that_speaks_tls_gets_nothing_from_a_plain_router(self, tmp_path: Path) -> None:
        async with secure(tmp_path, link_tls=None) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await plain.worker("decode").start()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            async with FakeWorker(plain.ports.link, "decode"):
                pass

    async def test_all_certificates_can_be_replaced_while_workers_are_there(self, running: Secure, foreign: Path) -> None:
        async with running.worker("prefill"), running.worker("decode"):
            replace_set(running.folder, foreign)
            assert (await running.ask()).status_code == 200, "streams that are open go on"
            async with running.worker("decode"):  # of the new set, as the router is now
                assert (await running.ask()).status_code == 200

    async def test_an_authority_can_be_replaced_step_by_step(self, running: Secure, foreign: Path) -> None:
        """While each side believes both, it does not matter who has the new certificate already."""
        both = b"".join((folder / "cluster-ca.pem").read_bytes() for folder in (running.folder, foreign))
        for folder in (running.folder, foreign):
            (folder / "cluster-ca.pem").write_bytes(both)
        async with running.worker("prefill"), running.worker("decode", foreign):
            assert (await running.ask()).status_code == 200


class Prefill(cluster_pb2_grpc.PrefillServiceServicer):
    """All three kinds of answer that a guard stands in front of."""

    async def Introduce(self, request: Any, context: Any) -> cluster_pb2.IntroduceResponse:  # noqa: N802
        return cluster_pb2.IntroduceResponse(prefill=cluster_pb2.Peer(incarnation=7))

    async def Prefill(self, request: Any, context: Any) -> AsyncIterator[cluster_pb2.PrefillEvent]:  # noqa: N802
        yield cluster_pb2.PrefillEvent()

    async def Abort(self, request: Any, context: Any) -> cluster_pb2.AbortResponse:  # noqa: N802
        return cluster_pb2.AbortResponse(quiesced=True)


class TestPrefillService:
    @pytest.fixture
    async def served(self, tmp_path: Path) -> AsyncIterator[tuple[Path, str, list[str]]]:
        """(certificates, address, one entry per refusal)."""
        folder = tmp_path / "certs"
        make_development_set(folder)
        refusals: list[str] = []
        guard = PeerGuard([PREFILL_SERVICE], ["decode"], lambda: refusals.append("refused"))
        identity = TlsIdentity(peer_files(folder).of_role("prefill"), "cluster.tls")
        server = GrpcServer([PREFILL_SERVICE], tls=identity, guard=guard)
        cluster_pb2_grpc.add_PrefillServiceServicer_to_server(Prefill(), server.server)
        port = await server.start("127.0.0.1", 0)
        yield folder, f"127.0.0.1:{port}", refusals
        await server.stop(0)

    async def test_decode_may_call_everything(self, served: tuple[Path, str, list[str]]) -> None:
        async with self.dial(served, "decode") as channel:
            stub: Any = cluster_pb2_grpc.PrefillServiceStub(channel)
            assert (await stub.Introduce(cluster_pb2.IntroduceRequest(), timeout=WAIT_S)).prefill.incarnation == 7
            assert len([one async for one in stub.Prefill(cluster_pb2.PrefillRequest(), timeout=WAIT_S)]) == 1
            assert (await stub.Abort(cluster_pb2.AbortRequest(), timeout=WAIT_S)).quiesced
        assert served[2] == []

    @pytest.mark.parametrize("role", ["router", "prefill"])
    async def test_others_may_call_nothing(self, served: tuple[Path, str, list[str]], role: PeerRole) -> None:
        async with self.dial(served, role) as channel:
            stub: Any = cluster_pb2_grpc.PrefillServiceStub(channel)
            for call in (
                stub.Introduce(cluster_pb2.IntroduceRequest(), timeout=WAIT_S),
                stub.Prefill(cluster_pb2.PrefillRequest(), timeout=WAIT_S).read(),
                stub.Abort(cluster_pb2.AbortRequest(), timeout=WAIT_S),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            await healthy(channel)
        assert served[2] == ["refused"] * 3

    async def test_whoever_dials_finds_out_that_this_is_another_role(self, served: tuple[Path, str, list[str]]) -> None:
        identity = TlsIdentity(peer_files(served[0]).of_role("decode"), "cluster.tls")
        stub: Any
        async with dial(served[1], "router", identity, OPTIONS) as channel:
            stub = cluster_pb2_grpc.PrefillServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="Hostname Verification") as refused:
                await stub.Abort(cluster_pb2.AbortRequest(), timeout=WAIT_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with self.dial(served, "decode") as channel:
            stub = cluster_pb2_grpc.PrefillServiceStub(channel)
            assert (await stub.Abort(cluster_pb2.AbortRequest(), timeout=WAIT_S)).quiesced, "it is there, under its own name"

    async def test_calls_go_on_with_the_new_certificate(self, served: tuple[Path, str, list[str]], foreign: Path) -> None:
        identity = TlsIdentity(peer_files(served[0]).of_role("decode"), "cluster.tls")
        stub = PeerStub(served[1], "prefill", identity, OPTIONS, cluster_pb2_grpc.PrefillServiceStub)
        first = stub.get()
        assert (await first.Abort(cluster_pb2.AbortRequest(), timeout=WAIT_S)).quiesced
        replace_set(served[0], foreign)
        assert stub.get() is not first
        assert (await stub.get().Abort(cluster_pb2.AbortRequest(), timeout=WAIT_S)).quiesced
        assert stub.get() is stub.get()
        await stub.close(0)

    def dial(self, served: tuple[Path, str, list[str]], role: PeerRole) -> grpc.aio.Channel:
        identity = TlsIdentity(peer_files(served[0]).of_role(role), "cluster.tls")
        return dial(served[1], "prefill", identity, OPTIONS)


def dial_as(running: Secure, folder: Path | None, role: PeerRole) -> grpc.aio.Channel:
    address = f"127.0.0.1:{running.ports.link}"
    if folder is not None:
        return dial(address, "router", TlsIdentity(peer_files(folder).of_role(role), "cluster.tls"), OPTIONS)
    trust = grpc.ssl_channel_credentials((running.folder / "cluster-ca.pem").read_bytes())
    expect = ("grpc.ssl_target_name_override", "router.serval.internal")
    return grpc.aio.secure_channel(address, trust, options=[*OPTIONS, expect])


async def healthy(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def refused_health(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_development_set_is_private_and_short_lived(tmp_path: Path) -> None:
    make_development_set(tmp_path / "certs", ["serval.example"], days=7)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "certs").iterdir()} == {"0o600"}
    front = certificate_in(tmp_path / "certs" / "front.pem")
    names = front.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "serval.example"]
    assert front.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=7)
