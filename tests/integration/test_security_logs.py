"""What a router writes down while people try its doors: whatever happens, no key, no prompt, no private key."""

import asyncio
import logging
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest

from serving.certificates import make_development_set
from tests.integration.router_support import MODEL, WAIT_S
from tests.integration.security_support import ANSWER, PROMPT, Secure, secure

UNKNOWN = "sk-serval-" + "B" * 43
CLIENTS = ("httpx", "httpcore")
"""The other side's log is not ours."""


async def try_everything(one: Secure, foreign: Path) -> None:
    assert (await one.ask()).status_code == 200
    assert (await one.ask(UNKNOWN)).status_code == 401
    assert (await one.ask(temperature=PROMPT)).status_code == 400
    async with one.http() as http:
        assert (await http.post("/v1/completions", content=PROMPT.encode())).status_code == 400
        too_large = {"model": MODEL, "prompt": PROMPT * 1000}
        assert (await http.post("/v1/completions", json=too_large)).status_code == 413
    async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            headers = {"Authorization": f"Bearer {one.key}"}
            await http.post(f"http://127.0.0.1:{one.ports.http}/v1/completions", headers=headers, json={"prompt": PROMPT})
    with pytest.raises(grpc.aio.AioRpcError):
        await one.worker("decode", foreign).start()
    with pytest.raises(grpc.aio.AioRpcError):
        await one.worker("decode", shows="prefill").start()


async def break_the_files(one: Secure, foreign: Path) -> None:
    # The mistake that people make: the key itself where its hash belongs.
    one.keys_file.write_text(f"keys:\n  - {{name: mine, sha256: {one.key}, tenant: research}}\n")
    (one.folder / "front.key").write_bytes((foreign / "front.key").read_bytes())
    async with asyncio.timeout(WAIT_S):
        while not one.metrics.value("serval_keys_reloads_total", result="failed"):  # noqa: ASYNC110 - a counter
            await asyncio.sleep(0.02)
    assert (await one.ask()).status_code == 200


async def test_no_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    make_development_set(tmp_path / "foreign")
    async with secure(tmp_path, max_body_bytes=4096) as one:
        private_keys = [file.read_text() for file in (*one.folder.glob("*.key"), *(tmp_path / "foreign").glob("*.key"))]
        async with one.worker("prefill"), one.worker("decode"):
            await try_everything(one, tmp_path / "foreign")
            await break_the_files(one, tmp_path / "foreign")
        key = one.key
    written = "\n".join(
        logging.Formatter("%(message)s").format(record) for record in caplog.records if not record.name.startswith(CLIENTS)
    )
    written += "".join(capfd.readouterr())  # gRPC writes to standard error by itself

    assert "the API keys in use stay" in written
    assert "sha256: must be 64 hexadecimal digits" in written
    assert "the certificate in use stays" in written
    assert "CERTIFICATE_VERIFY_FAILED" in written
    secrets = [key, key.removeprefix("sk-serval-"), UNKNOWN, PROMPT, ANSWER.strip(), "PRIVATE KEY"]
    secrets += [line for text in private_keys for line in text.splitlines()[1:-1]]
    assert len(secrets) > 20
    assert [secret for secret in secrets if secret in written] == []
