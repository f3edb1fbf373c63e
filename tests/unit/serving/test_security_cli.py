"""`serval certs` and `serval keys`, what the cluster warns of, and how its addresses are told."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from protocol.errors import ConfigError
from protocol.tls import PeerTlsFiles, TlsIdentity
from router.tenants.keys import ApiKeys, hash_of
from serving.announce import announcement
from serving.cli import app
from serving.config import ServalConfig, load
from serving.front import exposures
from serving.roles import Member, build
from serving.status import Ready
from telemetry.metrics import Metrics

RUNNER = CliRunner()


def run(*arguments: str) -> str:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_new_key_is_shown_once_and_works(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    first = run("keys", "new", "--name", "laptop", "--tenant", "research", "--file", str(file)).strip()
    second = run("keys", "new", "--name", "ci", "--tenant", "research", "--file", str(file)).strip()
    keys = ApiKeys(file, (), Metrics("router", "router-0"))
    assert keys.caller_of(f"Bearer {first}").key_name == "laptop"
    assert keys.caller_of(f"Bearer {second}").key_name == "ci"
    assert first not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    listed = run("keys", "list", "--file", str(file))
    assert "laptop" in listed and "ci" in listed and "research" in listed
    assert first not in listed and hash_of(first) not in listed


def test_a_new_key_leaves_the_others_and_their_tenants_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    old = {"name": "old", "sha256": "0" * 64, "tenant": "research"}
    file.write_text(yaml.safe_dump({"keys": [old], "tenants": {"research": {"weight": 2.5}}}))
    run("keys", "new", "--name", "new", "--tenant", "sales", "--file", str(file))
    settings = yaml.safe_load(file.read_text())
    assert settings["keys"][0] == old
    assert settings["tenants"] == {"research": {"weight": 2.5}, "sales": {}}


@pytest.mark.parametrize(("name", "tenant", "says"), [("old", "t", "has a key named old"), ("a b", "t", "letters, digits")])
def test_a_wrong_name_is_refused(tmp_path: Path, name: str, tenant: str, says: str) -> None:
    file = tmp_path / "keys.yaml"
    run("keys", "new", "--name", "old", "--tenant", "t", "--file", str(file))
    before = file.read_text()
    result = RUNNER.invoke(app, ["keys", "new", "--name", name, "--tenant", tenant, "--file", str(file)])
    assert isinstance(result.exception, ConfigError)
    assert says in str(result.exception)
    assert file.read_text() == before


def test_a_development_set_is_used_by_what_it_prints(tmp_path: Path) -> None:
    printed = run("certs", "dev", str(tmp_path / "certs"))
    assert printed == (tmp_path / "certs" / "serval.yaml").read_text()
    config = load(tmp_path / "certs" / "serval.yaml", {})
    assert config.cluster.tls is not None and config.router.tls is not None
    for role in ("router", "prefill", "decode"):
        TlsIdentity(config.cluster.tls.of_role(role), "cluster.tls")
    TlsIdentity(config.router.tls, "router.tls")
    assert load(None, yaml.safe_load(f"router.tls: {{certificate: {config.router.tls.certificate}, key: x}}")).router.tls


def test_a_missing_certificate_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    run("certs", "dev", str(tmp_path))
    (tmp_path / "decode.pem").unlink()
    config = load(tmp_path / "serval.yaml", {"cluster.metrics_port": 0})
    with pytest.raises(ConfigError, match=r"^cluster\.tls\.certificate: .*decode\.pem: No such file"):
        build(Member("decode"), config, [], lambda *_: None)


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    run("certs", "dev", str(tmp_path))
    files = PeerTlsFiles(certificate=tmp_path / "router.pem", key=tmp_path / "decode.key", ca=tmp_path / "cluster-ca.pem")
    with pytest.raises(ConfigError, match=r"^router\.link_tls: .*router\.pem and .*decode\.key are no certificate and its key"):
        TlsIdentity(files, "router.link_tls")


def secured(tmp_path: Path, **flags: object) -> ServalConfig:
    run("certs", "dev", str(tmp_path))
    return load(tmp_path / "serval.yaml", flags)


def test_loopback_needs_no_warning() -> None:
    assert list(exposures(load(None, {}))) == []
    assert list(exposures(load(None, {"cluster.host": "localhost"}))) == []


def test_what_is_open_to_the_network_is_said(tmp_path: Path) -> None:
    said = " ".join(exposures(load(None, {"cluster.host": "0.0.0.0"})))
    assert all(setting in said for setting in ("router.keys_file", "router.tls", "cluster.tls"))
    keys = str(tmp_path / "keys.yaml")
    assert list(exposures(secured(tmp_path, **{"cluster.host": "0.0.0.0", "router.keys_file": keys}))) == []
    (only,) = exposures(secured(tmp_path, **{"cluster.host": "0.0.0.0"}))
    assert "router.keys_file" in only


def test_the_announcement_says_how_to_get_in(tmp_path: Path) -> None:
    ready = {"router": Ready("h:8001", "h:8000", "h:8000", "h:8002"), "decode-0": Ready("h:2", "h:9102")}
    text = announcement(secured(tmp_path, **{"router.keys_file": "keys.yaml"}), ready, 1.0)
    assert "  HTTP     https://h:8000/v1\n" in text
    assert "  gRPC     h:8001 (TLS)\n" in text
    assert "https://h:8000/metrics (router)  http://h:9102/metrics (decode-0)" in text
    assert 'curl -N --cacert "$SERVAL_CA" https://h:8000/v1/chat/completions -H "Authorization: Bearer $SERVAL_API_KEY"' in text
