"""Who may do what: the holder of the administrator's token everything, an account what Roles that are bound to it allow."""

from dataclasses import dataclass

from tests.apiserver.errors import ApiError
from tests.apiserver.resources import Object, Resource
from tests.apiserver.store import Store

ADMIN_TOKEN = "administrator"


@dataclass(frozen=True)
class Act:
    """One request. `resource` with its subresource, such as deployments/scale."""

    verb: str
    resource: Resource
    subresource: str
    namespace: str
    name: str

    @property
    def plural(self) -> str:
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


def token_of(namespace: str, account: str) -> str:
    return f"account:{namespace}:{account}"


def require(store: Store, token: str, act: Act) -> None:
    """Raises 401 or 403."""
    if token == ADMIN_TOKEN:
        return
    kind, _, who = token.partition(":")
    namespace, _, account = who.partition(":")
    if kind != "account" or ("ServiceAccount", namespace, account) not in store.objects:
        raise ApiError(401, "Unauthorized")
    place = act.name if act.resource.kind == "Namespace" else act.namespace
    for binding in store.of_kind("RoleBinding", place) if place else []:
        holders = [
            (one.get("namespace"), one["name"]) for one in binding.get("subjects", []) if one["kind"] == "ServiceAccount"
        ]
        role = store.objects.get(("Role", place, binding["roleRef"]["name"]))
        if (namespace, account) in holders and role is not None and _allows(role, act):
            return
    plural = f"{act.resource.plural}.{act.resource.group}" if act.resource.group else act.resource.plural
    where = f' in the namespace "{act.namespace}"' if act.namespace else " at the cluster scope"
    raise ApiError(
        403,
        f'{plural} "{act.name}" is forbidden: User "system:serviceaccount:{namespace}:{account}" cannot {act.verb} '
        f'resource "{act.plural}" in API group "{act.resource.group}"{where}',
    )


def _allows(role: Object, act: Act) -> bool:
    return any(
        act.verb in rule["verbs"] and act.resource.group in rule["apiGroups"] and act.plural in rule["resources"]
        for rule in role["rules"]
    )
