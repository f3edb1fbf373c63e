"""What the server adds to an object, and what it refuses: schemas from kubernetes-validate, and the few rules beside them."""

import functools
import re
from typing import Any

import jsonschema
import kubernetes_validate.utils as schemas
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.apiserver.errors import ApiError
from tests.apiserver.resources import BUILT_IN, Object, Resource


@functools.cache
def strict_schema(resource: Resource) -> jsonschema.Draft202012Validator:
    """Of a built-in kind, without unknown fields."""
    version = schemas.latest_version()
    folder, minor = f"kubernetes-json-schema/v{version}-local-strict", schemas.major_minor(version)
    group = resource.group.split(".")[0]
    name = "-".join(filter(None, [resource.kind.lower(), group, resource.version]))
    content = schemas.schema_contents(f"{folder}/{name}.json", minor)
    return jsonschema.Draft202012Validator(content, registry=_definitions(folder, minor))


@functools.cache
def _definitions(folder: str, minor: str) -> Registry[Any]:
    content = schemas.schema_contents(f"{folder}/_definitions.json", minor)
    return Registry().with_resource("_definitions.json", DRAFT202012.create_resource(content)).crawl()


def refuse_unknown(resource: Resource, one: Object) -> None:
    """Strict field validation. Raises 400."""
    if resource.schema is not None or resource not in BUILT_IN or resource.group == "apiextensions.k8s.io":
        return
    for error in strict_schema(resource).iter_errors({name: value for name, value in one.items() if name != "status"}):
        if error.validator == "additionalProperties":
            path = ".".join(map(str, error.absolute_path))
            raise ApiError(400, f'strict decoding error: unknown field in "{path}": {error.message}')


def add_defaults(resource: Resource, one: Object) -> None:
    """Those that a client may meet."""
    if resource.kind == "Deployment":
        spec = one["spec"]
        spec.setdefault("replicas", 1)
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)
        strategy = spec.setdefault("strategy", {"type": "RollingUpdate"})
        strategy.setdefault("rollingUpdate", {"maxSurge": "25%", "maxUnavailable": "25%"})
        _pod_defaults(spec["template"]["spec"])
    elif resource.kind == "Pod":
        _pod_defaults(one["spec"])
        one.setdefault("status", {"phase": "Pending"})
    elif resource.kind == "Service":
        spec = one["spec"]
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("clusterIP", "10.96.0.10")
        for port in spec["ports"]:
            port.setdefault("protocol", "TCP")


def _pod_defaults(spec: Object) -> None:
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    for container in spec["containers"]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        for port in container.get("ports", []):
            port.setdefault("protocol", "TCP")


def validate(resource: Resource, one: Object, before: Object | None) -> None:
    """Raises 422."""
    if resource.kind == "Deployment":
        selector, template = one["spec"]["selector"]["matchLabels"], one["spec"]["template"]
        labels = template["metadata"].get("labels") or {}
        if not selector.items() <= labels.items():
            raise _invalid(
                resource, one, "spec.template.metadata.labels", f"Invalid value: {labels}: `selector` does not match"
            )
        if before is not None and before["spec"]["selector"] != one["spec"]["selector"]:
            raise _invalid(resource, one, "spec.selector", "Invalid value: field is immutable")
    name = one["metadata"]["name"]
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        raise _invalid(resource, one, "metadata.name", f"Invalid value: {name!r}: a lowercase RFC 1123 subdomain")
    if resource.schema is not None:
        for error in jsonschema.Draft202012Validator(resource.schema).iter_errors(one):
            raise _invalid(resource, one, ".".join(map(str, error.absolute_path)), error.message)


def _invalid(resource: Resource, one: Object, field: str, message: str) -> ApiError:
    name = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return ApiError(422, f'{name} "{one["metadata"]["name"]}" is invalid: {field}: {message}')


def fill_custom(schema: Any, value: Any) -> None:
    """A custom resource's defaults; fields that its schema does not name are dropped."""
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for name, inner in schema["properties"].items():
        if "default" in inner:
            value.setdefault(name, inner["default"])
        if name in value:
            fill_custom(inner, value[name])
    for name in value.keys() - schema["properties"].keys():
        del value[name]
