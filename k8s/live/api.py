"""Kubernetes' API server, as these commands use it: the one file that knows the `kubernetes` package.

Every request is one that may be sent twice (get, server-side apply, a patch that names the version it changes, delete), so what
passes by itself (a lost connection, 429, 503) is tried again, a few times. Every other answer is an error of k8s/live/errors.py.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, cast

from yaml import YAMLError

from k8s.live.errors import ClusterError, Missing, Unreachable, from_status, kind_missing
from k8s.live.kinds import label
from k8s.objects import FIELD_MANAGER, Manifest
from protocol.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0
PAUSES_S = (0.2, 0.5, 1.0)
"""Before each further try of a request."""

AGAIN = frozenset({429, 502, 503, 504})
"""HTTP statuses of a server that was not able to, and has done nothing."""

PAGE = 250
"""Objects of one answer to a list."""

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


def connect(kubeconfig: Path | None, context: str | None) -> Any:
    """The package's client: for the kubeconfig's context, or within a pod for its own cluster. Raises ConfigError."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise ConfigError("this command needs the extra `kubernetes`: pip install -e '.[kubernetes]'") from error
    settings, loader = client.Configuration(), cast(Any, config)
    is_in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    try:
        if is_in_pod and kubeconfig is None and context is None:
            loader.load_incluster_config(client_configuration=settings)
        else:
            loader.load_kube_config(str(kubeconfig) if kubeconfig else None, context, settings)
    except (config.ConfigException, OSError, YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        # The package checks little of what it reads: a file of another kind makes it stumble anywhere.
        raise ConfigError(f"{_named(kubeconfig, context)}: {' '.join(str(error).split())}") from error
    if not str(settings.host or "").startswith(("https://", "http://")):
        raise ConfigError(
            f"{_named(kubeconfig, context)}: the cluster's `server` must begin with https://, not {settings.host!r}"
        )
    settings.retries = False
    return client.ApiClient(settings)


_UNNAMED = "the kubeconfig (KUBECONFIG, or ~/.kube/config)"


def _named(kubeconfig: Path | None, context: str | None) -> str:
    return f"--context {context}" if context else f"--kubeconfig {kubeconfig}" if kubeconfig else _UNNAMED


class Api:
    """One namespace of one API server. `role`: the Role to name when a right is missing."""

    def __init__(self, client: Any, namespace: str, role: str, request_timeout_s: float) -> None:
        self._client = client
        self._role = role
        self._timeout_s = request_timeout_s
        self._plurals: dict[str, dict[str, str]] = {}
        self.namespace = namespace
        self.address = str(client.configuration.host)

    def knows(self, api_version: str, kind: str) -> bool:
        """Whether the cluster has this kind of object."""
        if api_version not in self._plurals:
            try:
                found = self._ask("GET", _group(api_version), "look up the kinds of", api_version)
            except Missing:
                found = {"resources": []}
            names = {one["kind"]: one["name"] for one in found.get("resources") or () if "/" not in one["name"]}
            self._plurals[api_version] = names
        return kind in self._plurals[api_version]

    def get(self, api_version: str, kind: str, name: str) -> Manifest | None:
        """None: it is not there."""
        try:
            return self._ask("GET", self._path(api_version, kind, name), "read", f"{kind}/{name}")
        except Missing:
            return None

    def list(self, api_version: str, kind: str, labels: str = "", fields: str = "") -> list[Manifest]:
        """Those of the namespace that both selectors choose."""
        found: list[Manifest] = []
        more = ""
        while True:
            query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE), "continue": more}
            page = self._ask("GET", self._path(api_version, kind), "list", f"{kind} objects", query)
            found += [{"apiVersion": api_version, "kind": kind} | one for one in page.get("items") or ()]
            if not (more := (page.get("metadata") or {}).get("continue") or ""):
                return found

    def apply(self, one: Manifest, *, dry_run: bool = False, force: bool = False) -> Manifest:
        """Server-side apply: the object as it is then, or would be. Raises Conflict where another owns a field, unless `force`."""
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower(), "fieldValidation": "Strict"}
        query["dryRun"] = "All" if dry_run else ""
        path = self._path(one["apiVersion"], one["kind"], one["metadata"]["name"])
        return self._ask("PATCH", path, "apply", label(one), query, one, APPLY)

    def patch(self, one: Manifest, change: dict[str, Any]) -> Manifest:
        """A merge patch of `one` as it was read: Changed is raised if it is not that any more."""
        version = {"metadata": {"resourceVersion": one["metadata"]["resourceVersion"]}}
        body = change | {"metadata": change.get("metadata", {}) | version["metadata"]}
        path = self._path(one["apiVersion"], one["kind"], one["metadata"]["name"])
        return self._ask("PATCH", path, "change", label(one), {"fieldManager": FIELD_MANAGER}, body, MERGE)

    def delete(self, one: Manifest) -> None:
        """Of exactly the object that was read, with what it owns, in the pods' own time. One that is gone already is none."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": one["metadata"]["uid"]}}
        path = self._path(one["apiVersion"], one["kind"], one["metadata"]["name"])
        try:
            self._ask("DELETE", path, "delete", label(one), body=body)
        except Missing:
            return

    def evict(self, pod: Manifest) -> None:
        """Ends a pod as far as its disruption budget allows: Unreachable is raised while it does not."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}}
        body["deleteOptions"] = {"preconditions": {"uid": pod["metadata"]["uid"]}}
        path = f"{self._path('v1', 'Pod', pod['metadata']['name'])}/eviction"
        try:
            self._ask("POST", path, "evict", label(pod), body=body)
        except Missing:
            return

    def _path(self, api_version: str, kind: str, name: str = "") -> str:
        if not self.knows(api_version, kind):
            raise kind_missing(api_version, kind)
        plural = self._plurals[api_version][kind]
        if kind == "Namespace":
            return f"{_group(api_version)}/{plural}/{name}"
        place = f"{_group(api_version)}/namespaces/{self.namespace}/{plural}"
        return f"{place}/{name}" if name else place

    def _ask(
        self,
        method: str,
        path: str,
        act: str,
        what: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The answer's object. `act` and `what` are for errors."""
        from urllib3 import exceptions

        parts = self._client.param_serialize(
            method,
            path,
            query_params=[(name, value) for name, value in (query or {}).items() if value],
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        for pause_s in (*PAUSES_S, None):
            try:
                code, answer = self._send(parts)
                if code < 300 and "kind" in answer:
                    return answer
                if code < 400:  # a page to sign in at, or a server of something else
                    said = f"HTTP {code}, {str(answer)[:80]}"
                    raise Unreachable(f"what answers at {self.address} is not Kubernetes ({act} {what}): {said}")
                error: ClusterError = from_status(act, what, code, answer, self._role)
                passes = code in AGAIN
            except exceptions.ReadTimeoutError as cause:
                where = f"the API server {self.address} did not answer within {self._timeout_s:g} s"
                raise Unreachable(f"{where} ({act} {what})") from cause
            except exceptions.HTTPError as cause:
                error = Unreachable(f"the API server {self.address} cannot be reached ({act} {what}): {cause}")
                passes = True
            if not passes or pause_s is None:
                raise error
            time.sleep(pause_s)
        raise AssertionError("the last pause is None")

    def _send(self, parts: Any) -> tuple[int, dict[str, Any]]:
        from kubernetes.client.exceptions import ApiException

        try:
            response = self._client.call_api(*parts, _request_timeout=(CONNECT_TIMEOUT_S, self._timeout_s))
        except ApiException as error:  # so the package says that a certificate is not what it should be
            reason = " ".join(str(error.reason).split())
            what = (
                "is not who the kubeconfig says it is" if "VERIFY_FAILED" in reason else "and this command find no TLS together"
            )
            raise Unreachable(f"the API server {self.address} {what}: {reason}") from error
        data = response.read()
        try:
            answer = json.loads(data)
        except ValueError:  # of a proxy before the API server
            answer = {"message": data.decode(errors="replace")[:200]}
        return response.status, answer if isinstance(answer, dict) else {"message": str(answer)[:200]}


def _group(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
