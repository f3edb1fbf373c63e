"""All objects, as an API server keeps them: versions, histories for watches, owners, finalizers, ends that take their time."""

import copy
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.apiserver import checks, fields
from tests.apiserver.errors import ApiError
from tests.apiserver.resources import BUILT_IN, Object, Resource

Key = tuple[str, str, str]
"""Kind, namespace (empty: the cluster's) and name."""


class Store:
    """Everything happens under one lock, in the order of resource versions."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.resources: list[Resource] = list(BUILT_IN)
        self.objects: dict[Key, Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        """(resource version, ADDED | MODIFIED | DELETED, kind, the object then)."""
        self.version = 1
        with self.changed:
            self._put(self._find("Namespace"), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})

    def _find(self, kind: str) -> Resource:
        return next(one for one in self.resources if one.kind == kind)

    def of_kind(self, kind: str, namespace: str = "") -> list[Object]:
        """Without a namespace: of all. To look at, not to change."""
        with self.changed:
            return [
                one for (a_kind, place, _), one in sorted(self.objects.items()) if a_kind == kind and namespace in ("", place)
            ]

    def read(self, resource: Resource, namespace: str, name: str) -> Object:
        one = self.objects.get((resource.kind, namespace, name))
        if one is None:
            plural = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
            raise ApiError(404, f'{plural} "{name}" not found')
        return one

    def create(self, resource: Resource, namespace: str, one: Object, manager: str, dry_run: bool) -> Object:
        one = copy.deepcopy(one)
        metadata = one.setdefault("metadata", {})
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if (resource.kind, namespace, metadata["name"]) in self.objects:
            raise ApiError(409, f'{resource.plural} "{metadata["name"]}" already exists', "AlreadyExists")
        if resource.has_status:
            one.pop("status", None)
        return self._write(
            resource, namespace, None, one, dry_run, lambda old, new: fields.note_update(resource, old, new, manager, "")
        )

    def apply(self, resource: Resource, namespace: str, config: Object, manager: str, force: bool, dry_run: bool) -> Object:
        name = config["metadata"]["name"]
        live = self.objects.get((resource.kind, namespace, name))
        result = fields.apply(resource, live, config, manager, force)
        return self._write(resource, namespace, live, result, dry_run, None)

    def change(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        how: Callable[[Object], Object],
        manager: str = "controller",
        dry_run: bool = False,
        subresource: str = "",
    ) -> Object:
        """`how` gets a copy and returns what it shall be. Raises 409 if its resourceVersion is not the object's own."""
        live = self.read(resource, namespace, name)
        new = how(copy.deepcopy(live))
        if new["metadata"].get("resourceVersion", live["metadata"]["resourceVersion"]) != live["metadata"]["resourceVersion"]:
            raise ApiError(409, f'Operation cannot be fulfilled on {resource.plural} "{name}": the object has been modified')
        if new["metadata"].get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            raise ApiError(409, f'Operation cannot be fulfilled on {resource.plural} "{name}": the UID is another')
        if resource.has_status:
            new = (
                {**live, "metadata": live["metadata"], "status": new.get("status", {})}
                if subresource == "status"
                else new | _status(live)
            )
        return self._write(
            resource,
            namespace,
            live,
            new,
            dry_run,
            lambda old, now: fields.note_update(resource, old, now, manager, subresource),
        )

    def delete(self, resource: Resource, namespace: str, name: str, options: Object, dry_run: bool = False) -> Object:
        """Pods and what has finalizers go later; what an object owns goes after it, or before it (Foreground)."""
        live = self.read(resource, namespace, name)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != live["metadata"]["uid"]:
            raise ApiError(
                409, f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {live['metadata']['uid']}"
            )
        if dry_run:
            return live
        new = copy.deepcopy(live)
        finalizers = new["metadata"].setdefault("finalizers", [])
        if options.get("propagationPolicy") == "Foreground" and self.owned_by(live) and "foregroundDeletion" not in finalizers:
            finalizers.append("foregroundDeletion")
        grace_s = (new.get("spec") or {}).get("terminationGracePeriodSeconds", 0) if resource.kind == "Pod" else 0
        if not finalizers:
            del new["metadata"]["finalizers"]
        if finalizers or (grace_s and new["spec"].get("nodeName")):
            new["metadata"].setdefault("deletionTimestamp", fields.now())
            new["metadata"].setdefault("deletionGracePeriodSeconds", grace_s)
            self._put(resource, new, live)
        else:
            self.remove(resource, live)
        return new

    def remove(self, resource: Resource, one: Object) -> None:
        """Now."""
        metadata = one["metadata"]
        del self.objects[resource.kind, metadata.get("namespace", ""), metadata["name"]]
        self.version += 1
        self._note("DELETED", resource.kind, {**one, "metadata": {**metadata, "resourceVersion": str(self.version)}})
        if resource.kind == "Namespace":
            for (kind, namespace, _), other in list(self.objects.items()):
                if namespace == metadata["name"]:
                    self.remove(self._find(kind), other)

    def owned_by(self, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [one for one in self.objects.values() if uid in owners_of(one)]

    def collect_garbage(self) -> None:
        """Ends what belongs to an owner that is gone or waits for it, and owners that wait for nothing any more."""
        uids = {one["metadata"]["uid"]: one for one in self.objects.values()}
        for (kind, namespace, name), one in list(self.objects.items()):
            if (kind, namespace, name) not in self.objects:
                continue
            owners = owners_of(one)
            is_orphan = owners and all(uid not in uids or uids[uid]["metadata"].get("deletionTimestamp") for uid in owners)
            if is_orphan and not one["metadata"].get("deletionTimestamp"):
                self.delete(self._find(kind), namespace, name, {"propagationPolicy": "Foreground"})
            elif one["metadata"].get("finalizers") == ["foregroundDeletion"] and not self.owned_by(one):
                self.remove(self._find(kind), one)

    def _write(
        self,
        resource: Resource,
        namespace: str,
        live: Object | None,
        new: Object,
        dry_run: bool,
        note: Callable[[Object | None, Object], None] | None,
    ) -> Object:
        if live is None and resource.is_namespaced and ("Namespace", "", namespace) not in self.objects:
            raise ApiError(404, f'namespaces "{namespace}" not found')
        new = copy.deepcopy(new) | {"apiVersion": resource.api_version, "kind": resource.kind}
        if resource.is_namespaced:
            new["metadata"]["namespace"] = namespace
        for name in fields.SERVERS:
            new["metadata"].pop(name, None) if live is None and name != "managedFields" else None
            if live is not None and name in live["metadata"] and name != "managedFields":
                new["metadata"][name] = live["metadata"][name]
        if resource.schema is not None:
            checks.fill_custom(resource.schema, new)
        checks.add_defaults(resource, new)
        checks.validate(resource, new, live)
        if note is not None:
            note(live, new)
        if dry_run:
            return self._stamped(new, live)
        if live is not None and without_times(live) == without_times(new):
            return live
        if live is not None and _is_let_go(live, new):
            self.remove(resource, live)
            return new
        return self._put(resource, new, live)

    def _stamped(self, one: Object, live: Object | None) -> Object:
        metadata = one["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", fields.now())
        metadata["generation"] = 1 if live is None else live["metadata"]["generation"]
        if live is not None and _spec(live) != _spec(one):
            metadata["generation"] += 1
        return one

    def _put(self, resource: Resource, one: Object, live: Object | None = None) -> Object:
        one = self._stamped(copy.deepcopy(one), live)
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        self.objects[resource.kind, one["metadata"].get("namespace", ""), one["metadata"]["name"]] = one
        self._note("ADDED" if live is None else "MODIFIED", resource.kind, one)
        if resource.kind == "CustomResourceDefinition":
            self._define(one["spec"])
        return one

    def _define(self, spec: Object) -> None:
        for version in spec["versions"]:
            made = Resource(
                spec["group"],
                version["name"],
                spec["names"]["plural"],
                spec["names"]["kind"],
                has_status="status" in version.get("subresources", {}),
                schema=_whole(version["schema"]["openAPIV3Schema"]),
            )
            self.resources = [one for one in self.resources if one.kind != made.kind] + [made]

    def _note(self, what: str, kind: str, one: Object) -> None:
        self.history.append((self.version, what, kind, one))
        self.changed.notify_all()

    @contextmanager
    def locked(self) -> Iterator["Store"]:
        with self.changed:
            yield self


def _whole(schema: Any) -> Any:
    """ObjectMeta is implicit in a definition's schema."""
    own = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    return schema | {"properties": schema.get("properties", {}) | own}


def _is_let_go(live: Object, new: Object) -> bool:
    """Whether the last finalizer of an object that was asked to end is gone."""
    metadata = live["metadata"]
    return bool(metadata.get("deletionTimestamp") and metadata.get("finalizers") and not new["metadata"].get("finalizers"))


def owners_of(one: Object) -> list[str]:
    return [owner["uid"] for owner in one["metadata"].get("ownerReferences") or []]


def without_times(one: Object) -> Object:
    """To tell a write that changes nothing from one that does."""
    entries = [
        {name: value for name, value in entry.items() if name != "time"} for entry in one["metadata"].get("managedFields") or []
    ]
    metadata = {name: value for name, value in one["metadata"].items() if name not in ("generation", "resourceVersion")}
    return one | {"metadata": metadata | {"managedFields": entries}}


def _spec(one: Object) -> Object:
    return {name: value for name, value in one.items() if name not in ("metadata", "status")}


def _status(one: Object) -> Object:
    return {"status": one["status"]} if "status" in one else {}
