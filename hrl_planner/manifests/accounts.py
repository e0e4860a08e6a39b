"""Accounts: what each process may do on the API server, and no more.

    planner of a group   status of its group, its pools (quota, finalizer)
    planner of a pool    status of its pool, the scale of its target
    both                 their own leases, events; read groups, pools and pods
    router               read its group's flows, and pods

Where RBAC can name an object, it is named. It cannot where a list spans many objects, and for
`create`, which is why leases come with the manifests and planners may not create any. One process
for all planners has a heartbeat of a name it makes up, and watches all targets at once, and so may
write any lease of its namespace and list any object of its targets' kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

from hrl_planner.control.dynamo import ADAPTER, adapter_name
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.manifests.installation import Installation, Json, PlannerProcess

_RBAC, _LEASES = "rbac.authorization.k8s.io", "coordination.k8s.io"
_READ = ("get", "list", "watch")


def accounts(installation: Installation) -> list[Json]:
    """Return accounts, roles, bindings and leases of planners and router."""
    made: list[Json] = []
    for planner in installation.planners():
        labels = installation.labels("planner", planner.name)
        rules = planner_rules(installation, planner)
        made += _account(installation, planner.name, labels, rules)
        if not planner.whole:
            leases = planner.leases(installation.group)
            made += [_lease(installation, name, labels) for name in leases]
    labels = installation.labels("router", installation.router)
    return [
        *made,
        *_account(installation, installation.router, labels, router_rules(installation)),
    ]


def planner_rules(installation: Installation, planner: PlannerProcess) -> list[Json]:
    """Return what a planner process may do."""
    pools = [pool.name for pool in installation.spec.pools]
    rules = [
        _rule(GROUP, [GROUPS, POOLS], _READ),
        _rule("", ["pods"], ("list", "watch")),
        _rule("", ["events"], ["create"]),
        *_election(installation, planner),
    ]
    if planner.divides:
        rules.append(_rule(GROUP, [f"{GROUPS}/status"], ["patch"], [installation.group]))
        rules.append(_rule(GROUP, [POOLS], ["patch"], pools))
    if planner.scales:
        rules.append(_rule(GROUP, [f"{POOLS}/status"], ["patch"], planner.scales))
    targets = [installation.target(pool) for pool in planner.scales]
    for target in targets:
        rules += _scaling(target)
    if planner.whole:
        watched = {_resource(each) for target in targets for each in (target, _scaled(target))}
        for group, plural in sorted(watched):
            rules.append(_rule(group, [plural], ("list", "watch")))
    return rules


def _election(installation: Installation, planner: PlannerProcess) -> list[Json]:
    """Return the rules for leases: its own, or a heartbeat nobody can name beforehand."""
    if planner.whole:
        return [_rule(_LEASES, ["leases"], ("get", "list", "create", "update", "delete"))]
    own = planner.leases(installation.group)
    return [
        # Whether a process of all planners that holds its lease still lives, shows in another.
        _rule(_LEASES, ["leases"], ["get"]),
        _rule(_LEASES, ["leases"], ["update"], own),
    ]


def _scaling(target: ScaleTargetRef) -> list[Json]:
    """Return the rules for reading and scaling one target."""
    scaled = _scaled(target)
    group, plural = _resource(scaled)
    rules = [
        _rule(group, [plural], _READ, [scaled.name]),
        _rule(group, [f"{plural}/scale"], ("get", "update"), [scaled.name]),
    ]
    if target.component is not None:
        # Where the component says whether it has an adapter. Whoever may write there may change
        # all of its deployment, so a component without an adapter needs a rule of its owner's.
        group, plural = _resource(target)
        rules.append(_rule(group, [plural], _READ, [target.name]))
    return rules


def _scaled(target: ScaleTargetRef) -> ScaleTargetRef:
    """Return what has the scale subresource."""
    if target.component is None:
        return target
    name = adapter_name(target.name, target.component)
    return ScaleTargetRef(api_version=target.api_version, kind=ADAPTER, name=name)


def _resource(target: ScaleTargetRef) -> tuple[str, str]:
    """Return group and plural."""
    return target.api_version.rpartition("/")[0], plural_of(target)


def router_rules(installation: Installation) -> list[Json]:
    """Return what the router may do."""
    return [
        # A list of one name is a list with the field selector `metadata.name`.
        _rule(GROUP, [GROUPS], ("list", "watch"), [installation.group]),
        _rule("", ["pods"], ("list", "watch")),
    ]


def plural_of(target: ScaleTargetRef) -> str:
    """Return the resource of a kind by Kubernetes' own guess (UnsafeGuessKindToResource)."""
    kind = target.kind.lower()
    if kind.endswith("s"):
        return f"{kind}es"
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


def _account(
    installation: Installation, name: str, labels: dict[str, str], rules: list[Json]
) -> list[Json]:
    metadata = installation.metadata(name, labels)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": installation.namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata,
            # Pods that need the token say so.
            "automountServiceAccountToken": False,
        },
        {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
            "subjects": [subject],
        },
    ]


def _lease(installation: Installation, name: str, labels: dict[str, str]) -> Json:
    return {
        "apiVersion": f"{_LEASES}/v1",
        "kind": "Lease",
        "metadata": installation.metadata(name, labels),
        "spec": {},
    }


def _rule(
    group: str, resources: Sequence[str], verbs: Sequence[str], names: Sequence[str] = ()
) -> Json:
    rule = {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
    return rule | ({"resourceNames": list(names)} if names else {})
