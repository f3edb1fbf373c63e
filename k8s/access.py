"""Who the pods are, and what whoever deploys them may do."""

from k8s.deployment import CONFIG_FILE, Deployment
from k8s.objects import ROLES, Manifest, full_name, manifest

DEPLOYER = "deployer"
READ = ["get", "list", "watch"]
WRITE = [*READ, "create", "patch", "delete"]


def config_map(deployment: Deployment) -> Manifest:
    return manifest(deployment, "v1", "ConfigMap", "config", data={CONFIG_FILE: deployment.pod_yaml()})


def accounts(deployment: Deployment) -> list[Manifest]:
    """One per role, so that a policy can tell them apart. Nothing that Serval runs talks to Kubernetes, so none has a token or a
    right. The deployer is for `serval k8s` in a pipeline."""
    names = [*ROLES, *(["head"] if deployment.kubernetes.flavour == "rayservice" else []), DEPLOYER]
    return [manifest(deployment, "v1", "ServiceAccount", name, name, automountServiceAccountToken=False) for name in names]


def rights(deployment: Deployment) -> list[Manifest]:
    """The deployer's: what `serval k8s` needs: the kinds of object that are rendered, in this namespace, and no Secret."""
    owned = {"": ["configmaps", "services", "serviceaccounts"], "policy": ["poddisruptionbudgets"]}
    owned["networking.k8s.io"] = ["networkpolicies"]
    owned["rbac.authorization.k8s.io"] = ["roles", "rolebindings"]
    # All that have pods: a change of flavour removes what the other one made.
    owned |= {"apps": ["deployments"], "leaderworkerset.x-k8s.io": ["leaderworkersets"], "ray.io": ["rayservices"]}
    owned["monitoring.coreos.com"] = ["podmonitors", "prometheusrules", "servicemonitors"]
    rules = [{"apiGroups": [group], "resources": kinds, "verbs": WRITE} for group, kinds in owned.items()]
    rules.append({"apiGroups": [""], "resources": ["events"], "verbs": READ})
    rules.append({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]})
    rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": [*READ, "patch"]})  # which one goes first
    rules.append({"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]})
    name = full_name(deployment, DEPLOYER)
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": deployment.kubernetes.namespace}],
    }
    api = "rbac.authorization.k8s.io/v1"
    return [
        manifest(deployment, api, "Role", DEPLOYER, DEPLOYER, rules=rules),
        manifest(deployment, api, "RoleBinding", DEPLOYER, DEPLOYER, **binding),
    ]
