"""What can go wrong between a command and the API server: one sentence each, and the exit status that a script can tell it by."""

import re
from collections.abc import Sequence
from typing import Any

from protocol.errors import ServalError

EXIT_NOT_READY = 3
EXIT_CONFLICT = 4
EXIT_FORBIDDEN = 5
EXIT_KIND_MISSING = 6
EXIT_UNREACHABLE = 7

INSTALL = {
    "ray.io": "install KubeRay, or set kubernetes.flavour: plain",
    "leaderworkerset.x-k8s.io": "install LeaderWorkerSet, or leave out kubernetes.prefill.hosts and kubernetes.decode.hosts",
    "monitoring.coreos.com": "install the Prometheus operator, or set kubernetes.monitoring: false",
}
"""What to do about a kind that the cluster does not know, by its API group."""

MANAGER = re.compile(r'conflict with "([^"]+)"')
WHO_MAY_NOT = re.compile(
    r'User "(?P<who>[^"]*)" cannot (?P<verb>\S+) resource "(?P<what>[^"]*)"(?: in API group "(?P<group>[^"]*)")?'
    r'(?: in the namespace "(?P<where>[^"]*)")?'
)


class ClusterError(ServalError):
    """A command that did not do what it should. `exit_code`: the process's."""

    exit_code = 1


class Refused(ClusterError):
    """The API server will not have the object as it is. `status` is the HTTP one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Missing(Refused):
    """There is no such object, or no such namespace."""


class NotReady(ClusterError):
    """All stands, and does not serve by the deadline."""

    exit_code = EXIT_NOT_READY


class Conflict(ClusterError):
    """Fields that we render belong to somebody else. `managers`: to whom."""

    exit_code = EXIT_CONFLICT

    def __init__(self, message: str, managers: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.managers = managers


class Changed(Conflict):
    """The object is not any more what was read: reading it again may help."""


class Forbidden(ClusterError):
    """Whoever asks has no right to it."""

    exit_code = EXIT_FORBIDDEN


class KindMissing(ClusterError):
    """The cluster does not know a kind of object."""

    exit_code = EXIT_KIND_MISSING


class Unreachable(ClusterError):
    """The API server does not answer, or says that it cannot at the moment."""

    exit_code = EXIT_UNREACHABLE


class Unfinished(ClusterError):
    """Some of the work is done, and stands."""

    def __init__(self, cause: ClusterError, stands: str) -> None:
        super().__init__(f"{cause}; {stands}")
        self.exit_code = cause.exit_code


class Several(ClusterError):
    """More than one object has something against it. The exit status is the first one's."""

    def __init__(self, errors: Sequence[ClusterError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.exit_code = errors[0].exit_code


def kind_missing(api_version: str, kind: str) -> KindMissing:
    group = api_version.rpartition("/")[0]
    advice = INSTALL.get(group, "this cluster is too old")
    return KindMissing(f"{kind} ({api_version}) is unknown to this cluster: {advice}")


def from_status(act: str, what: str, code: int, status: dict[str, Any], role: str) -> ClusterError:
    """The error of an answer that is none: `status` is Kubernetes' Status object, `what` the object that `act` was about, `role`
    the Role that has all rights which these commands need."""
    message = " ".join(str(status.get("message") or status.get("reason") or "no reason was given").split())
    match code:
        case 401:
            return Forbidden("the API server does not know who asks (401): sign in again, or name another --context")
        case 403:
            return _forbidden(what, message, role)
        case 404:
            return Missing(f"{what} is not there: {message}", 404)
        case 409 if causes := _field_conflicts(status):
            return _conflict(what, causes)
        case 409 if status.get("reason") == "Conflict":
            return Changed(f"{what} was changed by somebody else meanwhile: the same command again reads it anew")
        case 429 | 500 | 502 | 503 | 504:
            return Unreachable(f"the API server cannot {act} {what} at the moment ({code}: {message}): try again")
        case _:
            return Refused(f"{what} is refused ({code}): {message}", code)


def _field_conflicts(status: dict[str, Any]) -> list[dict[str, str]]:
    causes = (status.get("details") or {}).get("causes") or []
    return [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]


def _conflict(what: str, causes: list[dict[str, str]]) -> Conflict:
    owned: dict[str, list[str]] = {}
    for cause in causes:
        found = MANAGER.search(cause["message"])
        owned.setdefault(found.group(1) if found else "somebody else", []).append(cause["field"].lstrip("."))
    owners = " and ".join(f"{manager} owns {', '.join(fields)}" for manager, fields in owned.items())
    return Conflict(f"{what}: {owners}; --force-conflicts takes over, or leave them out of the other", frozenset(owned))


def _forbidden(what: str, message: str, role: str) -> Forbidden:
    if "attempting to grant" in message:
        return Forbidden(f"{what}: nobody can give rights that they do not have: an administrator must apply access.yaml first")
    if not (found := WHO_MAY_NOT.search(message)):
        return Forbidden(f"{what} is forbidden: {message}")
    kinds = found["what"] + (f".{found['group']}" if found["group"] else "")
    where = f" in namespace {found['where']}" if found["where"] else ""
    advice = f"Role {role} of access.yaml has all rights that are needed: an administrator must apply and bind it"
    return Forbidden(f"{found['who'] or 'whoever asks'} may not {found['verb']} {kinds}{where} ({what}): {advice}")
