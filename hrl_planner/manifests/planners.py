"""Deployments of the planner processes.

The planner of a group has a second pod that waits for the lease. A planner of a pool has one: while
it is away, its pool keeps the replicas it has. Everything a planner must remember stands in the
objects, so a pod has no volume but for temporary files.
"""

from __future__ import annotations

from hrl_planner.manifests.installation import (
    HEALTH_PORT,
    ROUTER_METRICS_PORT,
    Installation,
    Json,
    PlannerProcess,
)
from hrl_planner.manifests.pods import (
    CONFINED,
    POD_NAMESPACE,
    container_port,
    deployment,
    disruption_budget,
    http_probe,
    pod_spec,
    scratch,
)

# Measured: docs/deploy.md.
_RESOURCES: Json = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}


def planner_deployments(installation: Installation) -> list[Json]:
    """Return a Deployment per planner process."""
    return [_deployment(installation, planner) for planner in installation.planners()]


def planner_disruption_budgets(installation: Installation) -> list[Json]:
    """Return budgets of the processes that have a pod to spare."""
    return [
        disruption_budget(
            installation,
            planner.name,
            installation.labels("planner", planner.name),
            {"maxUnavailable": 1},
        )
        for planner in installation.planners()
        if planner.divides
    ]


def _deployment(installation: Installation, planner: PlannerProcess) -> Json:
    labels = installation.labels("planner", planner.name)
    pod = pod_spec(planner.name, _container(installation, planner), [scratch("tmp", "64Mi")])
    if planner.divides:
        pod["affinity"] = _apart(labels)
    replicas = 2 if planner.divides else 1
    return deployment(installation, planner.name, labels, pod, replicas=replicas)


def _container(installation: Installation, planner: PlannerProcess) -> Json:
    router = f"--router={installation.router}:{ROUTER_METRICS_PORT}"
    return {
        "name": "planner",
        "image": installation.planner_image,
        "command": ["python", "-m", "hrl_planner.cli", "plan"],
        "args": [
            *planner.arguments,
            "--namespace=$(POD_NAMESPACE)",
            router,
            f"--health-port={HEALTH_PORT}",
        ],
        # One round at a time; more threads would only wake each other.
        "env": [POD_NAMESPACE, {"name": "OMP_NUM_THREADS", "value": "1"}],
        "ports": [container_port("health", HEALTH_PORT)],
        # Until the first pages of workers have come it does not answer.
        "startupProbe": http_probe("/healthz", "health", periodSeconds=2, failureThreshold=60),
        "livenessProbe": http_probe("/healthz", "health", periodSeconds=10),
        "readinessProbe": http_probe("/readyz", "health", periodSeconds=5),
        "resources": _RESOURCES,
        "securityContext": CONFINED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _apart(labels: dict[str, str]) -> Json:
    """Return a wish for pods on different nodes."""
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    weighted = {"weight": 100, "podAffinityTerm": term}
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}}
