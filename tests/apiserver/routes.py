"""From a request's path and method to what the store does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.apiserver import checks, rights
from tests.apiserver.errors import ApiError
from tests.apiserver.patches import merge_patch, strategic_patch
from tests.apiserver.resources import Object, Resource
from tests.apiserver.rights import Act
from tests.apiserver.selectors import chosen
from tests.apiserver.store import Store

APPLY = ("application/apply-patch+yaml", "application/apply-patch+json")
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
QUIET_S = 0.1
"""How often a watch without news looks whether it shall end."""


@dataclass(frozen=True)
class Request:
    """As it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    content_type: str
    token: str
    agent: str

    @property
    def is_dry(self) -> bool:
        return self.query.get("dryRun") == "All"

    @property
    def manager(self) -> str:
        return self.query.get("fieldManager") or self.agent.partition("/")[0] or "unknown"


@dataclass(frozen=True)
class Answer:
    """`watched`: events, one after the other; None for none at the moment."""

    content: Any
    code: int = 200
    watched: Iterator[Object | None] | None = None


def answer(store: Store, request: Request) -> Answer:
    """Raises ApiError."""
    steps = [step for step in request.path.split("/") if step]
    if request.path == "/version":
        return Answer({"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
    if steps[0] == "api":
        group, version, rest = "", steps[1] if len(steps) > 1 else "", steps[2:]
    elif steps[0] == "apis" and len(steps) > 1:
        group, version, rest = steps[1], steps[2] if len(steps) > 2 else "", steps[3:]
    else:
        group, version, rest = "", "", []
    known = [one for one in store.resources if (one.group, one.version) == (group, version)]
    if not rest:
        return _discovery(store, steps, known)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource = next((one for one in known if one.plural == rest[0]), None)
    if resource is None:
        raise ApiError(404, "the server could not find the requested resource")
    name, subresource = [*rest[1:], "", ""][:2]
    with store.locked():
        act = Act(_verb(request, name), resource, subresource, namespace, name)
        rights.require(store, request.token, act)
        return _act(store, request, act)


def _discovery(store: Store, steps: list[str], known: list[Resource]) -> Answer:
    if steps == ["api"]:
        return Answer({"kind": "APIVersions", "versions": ["v1"]})
    if steps == ["apis"]:
        groups: dict[str, set[str]] = {}
        for one in store.resources:
            if one.group:
                groups.setdefault(one.group, set()).add(one.version)
        found = []
        for name, versions in groups.items():
            listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in sorted(versions)]
            found.append({"name": name, "versions": listed, "preferredVersion": listed[0]})
        return Answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": found})
    if not known:
        raise ApiError(404, "the server could not find the requested resource")
    resources = []
    for one in known:
        entry = {"name": one.plural, "singularName": one.kind.lower(), "namespaced": one.is_namespaced, "kind": one.kind}
        entry["verbs"] = ["create", "delete", "get", "list", "patch", "update", "watch"]
        resources.append(entry)
        resources += [entry | {"name": f"{one.plural}/status"}] if one.has_status else []
        resources += [entry | {"name": f"{one.plural}/scale", "kind": "Scale"}] if one.has_scale else []
    return Answer({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": known[0].api_version, "resources": resources})


def _verb(request: Request, name: str) -> str:
    if request.method == "GET":
        return "get" if name else "watch" if request.query.get("watch") in ("true", "1", "True") else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def _act(store: Store, request: Request, act: Act) -> Answer:
    resource, place, name = act.resource, act.namespace, act.name
    if request.query.get("fieldValidation") == "Strict" and isinstance(request.body, dict) and not act.subresource:
        checks.refuse_unknown(resource, request.body)
    match act.verb, act.subresource:
        case "get", "scale":
            return Answer(_scale(store.read(resource, place, name)))
        case "get", _:
            return Answer(store.read(resource, place, name))
        case "list", _:
            return Answer(_list(store, request, act))
        case "watch", _:
            return Answer(None, watched=_events(store, request, act))
        case "create", "eviction":
            return Answer(_evict(store, request, act))
        case "create", "token":
            token = rights.token_of(place, name)
            return Answer(
                {
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenRequest",
                    "metadata": {},
                    "spec": {"audiences": []},
                    "status": {"token": token, "expirationTimestamp": "2100-01-01T00:00:00Z"},
                },
                201,
            )
        case "create", _:
            return Answer(store.create(resource, place, request.body, request.manager, request.is_dry), 201)
        case "update", _:
            return Answer(
                store.change(resource, place, name, lambda _: request.body, request.manager, request.is_dry, act.subresource)
            )
        case "patch", _:
            return Answer(_patch(store, request, act))
        case _:
            options = {key: value for key, value in request.query.items() if key == "propagationPolicy"} | (request.body or {})
            return Answer(store.delete(resource, place, name, options, request.is_dry))


def _list(store: Store, request: Request, act: Act) -> Object:
    found = [one for one in store.of_kind(act.resource.kind, act.namespace) if chosen(one, request.query)]
    start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 0)
    metadata: Object = {"resourceVersion": str(store.version)}
    if limit and len(found) > start + limit:
        metadata["continue"] = str(start + limit)
    page = found[start : start + limit] if limit else found[start:]
    return {"apiVersion": act.resource.api_version, "kind": f"{act.resource.kind}List", "metadata": metadata, "items": page}


def _events(store: Store, request: Request, act: Act) -> Iterator[Object | None]:
    """From a resource version on, or from now with everything that there is. One generator per watch, outside the lock."""
    since = request.query.get("resourceVersion") or "0"
    seen = int(since)
    if since == "0":
        seen = store.version
        present = [one for one in store.of_kind(act.resource.kind, act.namespace) if chosen(one, request.query)]
    else:
        present = []
    return _follow(store, request, act, seen, present)


def _follow(store: Store, request: Request, act: Act, seen: int, present: list[Object]) -> Iterator[Object | None]:
    for one in present:
        yield {"type": "ADDED", "object": one}
    while True:
        with store.changed:
            news = [entry for entry in store.history if entry[0] > seen]
            if not news:
                store.changed.wait(QUIET_S)
        if not news:
            yield None
        for version, what, kind, one in news:
            seen = version
            is_there = act.namespace in ("", one["metadata"].get("namespace", ""))
            if kind == act.resource.kind and is_there and chosen(one, request.query):
                yield {"type": what, "object": one}


def _patch(store: Store, request: Request, act: Act) -> Object:
    resource, place, name = act.resource, act.namespace, act.name
    if request.content_type in APPLY:
        force = request.query.get("force") == "true"
        return store.apply(resource, place, request.body, request.manager, force, request.is_dry)
    if act.subresource == "scale":
        number = request.body["spec"]["replicas"]

        def resized(one: Object) -> Object:
            return one | {"spec": one["spec"] | {"replicas": number}}

        return _scale(store.change(resource, place, name, resized, request.manager, request.is_dry, "scale"))
    if (
        request.content_type == STRATEGIC
        and resource.group not in ("ray.io", "monitoring.coreos.com")
        and resource.schema is None
    ):
        return store.change(
            resource,
            place,
            name,
            lambda one: strategic_patch(resource, one, request.body),
            request.manager,
            request.is_dry,
            act.subresource,
        )
    if request.content_type != MERGE:
        raise ApiError(415, f"the body of the request was in an unknown format: {request.content_type}")
    return store.change(
        resource, place, name, lambda one: merge_patch(one, request.body), request.manager, request.is_dry, act.subresource
    )


def _scale(one: Object) -> Object:
    metadata = {name: one["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
    spec = {"replicas": one["spec"]["replicas"]}
    status = {"replicas": (one.get("status") or {}).get("replicas", 0)}
    return {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status}


def _evict(store: Store, request: Request, act: Act) -> Object:
    """Raises 429 where a budget is used up."""
    pod = store.read(act.resource, act.namespace, act.name)
    labels = pod["metadata"].get("labels", {}).items()
    for budget in store.of_kind("PodDisruptionBudget", act.namespace):
        selector = budget["spec"]["selector"]["matchLabels"].items()
        if not selector <= labels:
            continue
        alike = [one for one in store.of_kind("Pod", act.namespace) if selector <= one["metadata"].get("labels", {}).items()]
        ready = sum(is_ready(one) for one in alike)
        least = budget["spec"].get("minAvailable", len(alike) - budget["spec"].get("maxUnavailable", len(alike)))
        if is_ready(pod) and ready - 1 < least:
            raise ApiError(429, "Cannot evict pod as it would violate the pod's disruption budget.")
    store.delete(act.resource, act.namespace, act.name, (request.body or {}).get("deleteOptions") or {}, request.is_dry)
    return {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201}


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
