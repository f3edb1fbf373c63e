"""The keys file, and who a caller is by it."""

from pathlib import Path

import pytest
import yaml

from protocol.errors import ConfigError, Unauthenticated
from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.keys import ApiKeys, KeysFile, hash_of, new_key
from router.tenants.tenant import TenantLimits
from telemetry.metrics import Metrics

HASH = "0" * 64


def keys_of(path: Path | None, *configured: str) -> ApiKeys:
    return ApiKeys(path, configured, Metrics("router", "router-0"))


def write(folder: Path, content: object) -> Path:
    path = folder / "keys.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_without_a_file_everybody_is_anonymous() -> None:
    keys = keys_of(None)
    assert keys.caller_of(None) is ANONYMOUS
    assert keys.caller_of("Bearer whatever clients of the field send") is ANONYMOUS


def test_a_key_says_whose_request_it_is(tmp_path: Path) -> None:
    key = new_key()
    entry = {"name": "laptop", "sha256": hash_of(key), "tenant": "research"}
    limits = {"requests_per_minute": 3, "weight": 2}
    keys = keys_of(write(tmp_path, {"keys": [entry], "tenants": {"research": limits}}))
    assert keys.caller_of(f"Bearer {key}") == Caller("research", "laptop")
    assert keys.tenants == {"research": TenantLimits(requests_per_minute=3, weight=2)}


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer x", f"Bearer {HASH}", "Basic eDp5", "Bearer \udcff", "é"]
)
def test_anything_else_is_refused_without_being_repeated(tmp_path: Path, header: str | None) -> None:
    key = new_key()
    entry = {"name": "laptop", "sha256": hash_of(key), "tenant": "research"}
    keys = keys_of(write(tmp_path, {"keys": [entry], "tenants": {"research": {}}}))
    with pytest.raises(Unauthenticated) as refused:
        keys.caller_of(header)
    assert HASH not in str(refused.value)
    assert key not in repr(keys)
    assert hash_of(key) not in repr(keys)


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated):
        keys_of(write(tmp_path, "")).caller_of(f"Bearer {new_key()}")


def test_keys_are_256_random_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {len("sk-serval-") + 43}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"keys": [{"name": "a", "tenant": "t"}]}, "keys.0.sha256: Field required"),
        ({"keys": [{"name": "a", "sha256": "sk-serval-secret", "tenant": "t"}]}, "keys.0.sha256: must be 64 hexadecimal"),
        ({"keys": [{"name": "a b", "sha256": HASH, "tenant": "t"}]}, "keys.0.name: "),
        ({"keys": [{"name": "a", "sha256": HASH, "tenant": "t"}]}, "keys.0.tenant: t is not one of `tenants`"),
        ({"keys": [{"name": "a", "sha256": HASH, "tenant": "t"}] * 2, "tenants": {"t": {}}}, "keys.1.name: another key"),
        ({"tenants": {"t": {"requests_per_hour": 3}}}, "tenants.t.requests_per_hour: no such setting"),
        ({"tenants": {"t": {"weight": 0}}}, "tenants.t.weight: must be greater than 0"),
        ({"key": []}, "key: no such setting"),
        ("keys: [sk-serval-secret", "not valid YAML, line 1"),
        ("since: 2026-13-01", "not valid YAML"),
        ("- 1", "the file: "),
    ],
)
def test_a_wrong_file_is_named_in_one_line_that_quotes_nothing(tmp_path: Path, content: object, says: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        keys_of(path)
    line = str(error.value)
    assert line.startswith(f"{path}: {says}")
    assert "sk-serval-secret" not in line
    assert "\n" not in line


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.yaml: No such file"):
        keys_of(tmp_path / "keys.yaml")


def test_a_tenant_may_be_configured_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path, {"keys": [{"name": "a", "sha256": HASH, "tenant": "t"}]})
    assert keys_of(path, "t").tenants == {}
    assert len(KeysFile.read(path).keys) == 1
