"""`serval keys`: makes API keys and lists what the file has. A running router takes the file's changes by itself."""

from pathlib import Path

import yaml

from protocol.errors import ConfigError
from router.tenants.keys import KeyEntry, KeysFile, hash_of, new_key
from router.tenants.tenant import TenantLimits
from serving.certificates import write_private


def add_key(file: Path, name: str, tenant: str) -> str:
    """Adds a new key's hash to the file, which is made if it is not there, and the tenant, without limits, if it is new. Returns
    the key: it is nowhere else. Comments in the file are lost. Raises ConfigError."""
    content = KeysFile.read(file) if file.exists() else KeysFile()
    if any(key.name == name for key in content.keys):
        raise ConfigError(f"--name: {file} has a key named {name}; a key is changed by adding another and removing the old")
    key = new_key()
    try:
        entry = KeyEntry(name=name, sha256=hash_of(key), tenant=tenant)
    except ValueError:
        raise ConfigError("--name, --tenant: letters, digits, dots, dashes and underscores; 64 at most") from None
    tenants = {tenant: TenantLimits(), **content.tenants}
    settings = {
        "keys": [one.model_dump() for one in (*content.keys, entry)],
        "tenants": {one: limits.model_dump(exclude_defaults=True) for one, limits in tenants.items()},
    }
    try:
        write_private(file, yaml.safe_dump(settings, sort_keys=False).encode())
    except OSError as error:
        raise ConfigError(f"--file: {file}: {error.strerror or error}") from error
    return key


def list_keys(file: Path) -> list[str]:
    """One line per key: name, tenant, the beginning of the hash. Raises ConfigError."""
    return [f"{key.name:24} {key.tenant:24} sha256 {key.sha256[:12]}…" for key in KeysFile.read(file).keys]
