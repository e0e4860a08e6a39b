"""For the Prometheus operator: what to scrape, and leave to do so.

A component of its own, as a cluster without that operator does not know these kinds.
"""

from __future__ import annotations

from hrl_planner.manifests.installation import (
    HEALTH_PORT,
    PREFIX,
    ROUTER_METRICS_PORT,
    Installation,
    Json,
)

_INTERVAL = "15s"
# As the operator labels the pods of every Prometheus it makes.
_PROMETHEUS: Json = {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}


def monitors(installation: Installation) -> list[Json]:
    """Return monitors of router and planners, and the network policy that lets them be asked."""
    return [
        _service_monitor(installation),
        _pod_monitor(installation),
        _way_in(installation),
    ]


def _service_monitor(installation: Installation) -> Json:
    labels = installation.labels("router", installation.router)
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": installation.metadata(installation.router, labels),
        "spec": {
            "selector": {"matchLabels": labels},
            "endpoints": [{"port": "metrics", "interval": _INTERVAL}],
        },
    }


def _pod_monitor(installation: Installation) -> Json:
    name = f"{PREFIX}-planner-{installation.group}"
    labels = installation.labels("planner")
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": installation.metadata(name, labels),
        "spec": {
            "selector": {"matchLabels": labels},
            "podMetricsEndpoints": [{"port": "health", "interval": _INTERVAL}],
        },
    }


def _way_in(installation: Installation) -> Json:
    ours = installation.labels()
    ports = [{"protocol": "TCP", "port": port} for port in (ROUTER_METRICS_PORT, HEALTH_PORT)]
    prometheus = {"namespaceSelector": {}, "podSelector": _PROMETHEUS}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": installation.metadata(f"{PREFIX}-metrics-{installation.group}", ours),
        "spec": {
            "podSelector": {"matchLabels": ours},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [prometheus], "ports": ports}],
        },
    }
