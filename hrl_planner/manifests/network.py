"""Who may talk to whom.

    clients ----> router ----> workers <---- planners
                    ^                           |
                    +------- metrics -----------+         both ----> API server, DNS

Our own pods may do nothing else. Workers hear only routers, planners and each other (KV caches
go from prefill to decode); whom they call themselves is their framework's affair. Other pods of
the namespace are left alone. The API server cannot be selected by a label: its ports are open to
any address, and `docs/deploy.md` says how to narrow that.
"""

from __future__ import annotations

from collections.abc import Sequence

from hrl_planner.manifests.installation import (
    PREFIX,
    ROUTER_METRICS_PORT,
    ROUTER_PORT,
    Installation,
    Json,
)
from hrl_planner.router.discovery.kubernetes import POOL_LABEL

_API_SERVER_PORTS = (443, 6443)
_NODE_LOCAL_DNS = "169.254.20.10/32"


def network_policies(installation: Installation) -> list[Json]:
    """Return the policies of one group."""
    group = installation.group
    ours = {"matchLabels": installation.labels()}
    planners = {"matchLabels": installation.labels("planner")}
    router = {"matchLabels": installation.labels("router")}
    pools = [pool.name for pool in installation.spec.pools]
    workers = {"matchExpressions": [{"key": POOL_LABEL, "operator": "In", "values": pools}]}
    return [
        _policy(installation, f"{PREFIX}-deny-{group}", ours, ingress=[], egress=[]),
        _policy(
            installation,
            f"{PREFIX}-planner-{group}",
            planners,
            egress=[
                *_to_api_server(),
                {"to": [{"podSelector": workers}]},
                {"to": [{"podSelector": router}], "ports": _tcp(ROUTER_METRICS_PORT)},
            ],
        ),
        _policy(
            installation,
            installation.router,
            router,
            ingress=[
                {"ports": _tcp(ROUTER_PORT)},
                {"from": [{"podSelector": planners}], "ports": _tcp(ROUTER_METRICS_PORT)},
            ],
            egress=[*_to_api_server(), {"to": [{"podSelector": workers}]}],
        ),
        _policy(
            installation,
            f"{PREFIX}-workers-{group}",
            workers,
            ingress=[{"from": [{"podSelector": each} for each in (router, planners, workers)]}],
        ),
    ]


def _policy(
    installation: Installation,
    name: str,
    pods: Json,
    ingress: list[Json] | None = None,
    egress: list[Json] | None = None,
) -> Json:
    """Return a policy; a direction without rules is closed, one that is None is not judged."""
    directions: dict[str, list[Json] | None] = {"Ingress": ingress, "Egress": egress}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": installation.metadata(name, installation.labels()),
        "spec": {
            "podSelector": pods,
            "policyTypes": [each for each, rules in directions.items() if rules is not None],
            **{each.lower(): rules for each, rules in directions.items() if rules},
        },
    }


def _to_api_server() -> list[Json]:
    """Return the way to the API server, and to names."""
    # On every version: namespaces have no label of their name before 1.21.
    dns = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    names = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    return [
        {"ports": _tcp(*_API_SERVER_PORTS)},
        {"to": [dns, {"ipBlock": {"cidr": _NODE_LOCAL_DNS}}], "ports": names},
    ]


def _tcp(*ports: int) -> Sequence[Json]:
    return [{"protocol": "TCP", "port": port} for port in ports]
