"""API keys: who a caller is, by a file that holds hashes of keys and never keys.

A key is 256 random bits, so its plain SHA-256 can neither be guessed nor be found in a table: the slow, salted hashes that
passwords need would cost each request milliseconds and protect nothing more.

    keys:
      - {name: laptop, sha256: 9f86d0…, tenant: research}
    tenants:
      research: {tokens_per_minute: 200000, weight: 2}
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError, Unauthenticated
from protocol.file_stamp import stamp_of
from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.tenant import TenantLimits
from telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

PREFIX = "sk-serval-"
"""So that people, and programs that look for secrets in repositories, know what they have found."""

KEY_BYTES = 32
RELOAD_PERIOD_S = 1.0
LONGEST_KEY = 512
"""Characters; a longer one is not hashed."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class KeyEntry(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Tells keys apart in logs. Unique.")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(description="Of the whole key, in hexadecimal.")
    tenant: Name = Field(description="Whose limits and turns it shares; one of `tenants`.")


class KeysFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyEntry, ...] = ()
    tenants: Mapping[Name, TenantLimits] = {}

    @classmethod
    def read(cls, path: Path) -> "KeysFile":
        """Raises ConfigError, which never quotes the file: somebody may have put a key where its hash belongs."""
        try:
            settings = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise ConfigError(f"{path}: {reason}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates that are none it makes a ValueError
            mark = getattr(error, "problem_mark", None)
            raise ConfigError(f"{path}: not valid YAML{f', line {mark.line + 1}' if mark else ''}") from None
        try:
            return cls.model_validate({} if settings is None else settings)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{path}: {place or 'the file'}: {_requirement(first['type'], first['msg'])}") from None

    def check(self, path: Path, configured_tenants: Collection[str]) -> None:
        """Raises ConfigError for names that are there twice, or that nothing stands behind."""
        seen: set[str] = set()
        for number, key in enumerate(self.keys):
            for field, value in (("name", key.name), ("sha256", key.sha256)):
                if f"{field} {value}" in seen:
                    raise ConfigError(f"{path}: keys.{number}.{field}: another key has the same")
                seen.add(f"{field} {value}")
            if key.tenant not in self.tenants and key.tenant not in configured_tenants:
                raise ConfigError(f"{path}: keys.{number}.tenant: {key.tenant} is not one of `tenants`")


class ApiKeys:
    """Who shows which key. Without a file everybody is ANONYMOUS; with one, nobody is.

    `watch` keeps up with the file. A new file that is wrong changes nothing: it is logged and counted once, the old keys hold.
    """

    def __init__(self, path: Path | None, configured_tenants: Collection[str], metrics: Metrics) -> None:
        """Raises ConfigError when the file cannot be used."""
        self._path = path
        self._configured_tenants = frozenset(configured_tenants)
        self._metrics = metrics
        self._callers: dict[str, tuple[str, Caller]] = {}
        self.tenants: Mapping[str, TenantLimits] = {}
        """Limits of the file's tenants."""
        self.on_reloaded: Callable[[], None] = lambda: None
        """Called on the event loop when keys or tenants have changed."""
        if path is not None:
            self._stamp = stamp_of([path])
            self._take(self._read(path))

    def __repr__(self) -> str:
        return f"ApiKeys({self._path}, {len(self._callers)} keys)"

    def caller_of(self, authorization: str | None) -> Caller:
        """Whose request this is, by the value of its Authorization header. Raises Unauthenticated."""
        if self._path is None:
            return ANONYMOUS
        if authorization is None:
            raise Unauthenticated("no API key: send the header `Authorization: Bearer KEY`")
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip() or len(key) > LONGEST_KEY:
            raise Unauthenticated("the Authorization header must be `Bearer KEY`")
        digest = hash_of(key.strip())
        known, caller = self._callers.get(digest, ("", None))
        # The look-up's time tells something of a hash, and a hash of random bits tells nothing of the key; the comparison is
        # constant in time all the same, so that nobody has to think about it again.
        if caller is None or not hmac.compare_digest(known, digest):
            raise Unauthenticated("the API key is not known")
        return caller

    async def watch(self) -> None:
        """Takes each new version of the file within about a second. Runs until it is cancelled."""
        while self._path is not None:
            await asyncio.sleep(RELOAD_PERIOD_S)
            stamp = stamp_of([self._path])
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                content = await asyncio.to_thread(self._read, self._path)
            except ConfigError as error:
                logger.warning("the API keys in use stay: %s", error)
                self._metrics.keys_reloads.of(result="failed").inc()
                continue
            self._take(content)
            logger.info("%d API keys of %d tenants", len(content.keys), len({key.tenant for key in content.keys}))
            self._metrics.keys_reloads.of(result="ok").inc()
            self.on_reloaded()

    def _read(self, path: Path) -> KeysFile:
        content = KeysFile.read(path)
        content.check(path, self._configured_tenants)
        return content

    def _take(self, content: KeysFile) -> None:
        self._callers = {key.sha256: (key.sha256, Caller(key.tenant, key.name)) for key in content.keys}
        self.tenants = content.tenants


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _requirement(kind: str, message: str) -> str:
    """pydantic's words; a pattern is named by what it stands for."""
    if kind == "extra_forbidden":
        return "no such setting"
    if kind == "string_pattern_mismatch" and "0-9a-f" in message:
        return "must be 64 hexadecimal digits in small letters"
    return re.sub("^Input should", "must", message)
