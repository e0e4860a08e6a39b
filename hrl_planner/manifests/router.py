"""The router: its config, its Deployment, the Service clients talk to.

Envoy and the picker share one container, under the supervisor of docs/router.md. As two containers
they would both be told to stop at the same moment, and requests would lose their picker while
Envoy still lets answers end; a picker that dies would come back after the kubelet's back-off,
not after a tenth of a second; and Envoy's config would have to be made apart from the picker that
reads its log. A gateway of one's own runs without Envoy: `--no-envoy`.
"""

from __future__ import annotations

import hashlib

import yaml

from hrl_planner.manifests.installation import (
    ROUTER_METRICS_PORT,
    ROUTER_PORT,
    Installation,
    Json,
)
from hrl_planner.manifests.pods import (
    CONFINED,
    POD_NAMESPACE,
    container_port,
    deployment,
    disruption_budget,
    http_probe,
    pod_spec,
    rolling,
    scratch,
)

_CONFIG_FOLDER, _CACHE_FOLDER = "/etc/hrl-planner", "/var/cache/hrl-planner"
# The supervisor drains for 120 s and gives its children 10 s more.
_GRACE_S = 150
# Measured: docs/deploy.md.
_RESOURCES: Json = {
    "requests": {"cpu": "1", "memory": "1Gi"},
    "limits": {"cpu": "4", "memory": "2Gi"},
}


def router_objects(installation: Installation) -> list[Json]:
    """Return config, Deployment, Service and disruption budget of the router."""
    labels = installation.labels("router", installation.router)
    return [
        router_config(installation),
        router_deployment(installation),
        _service(installation, labels),
        # One pod: a drain of its node waits until it was moved by `kubectl rollout restart`.
        disruption_budget(installation, installation.router, labels, {"minAvailable": 1}),
    ]


def router_config(installation: Installation, **sections: Json) -> Json:
    """Return the ConfigMap: the router's config, and the cluster spec it names.

    Args:
        installation: what is installed.
        sections: more of the config, see `RouterConfig`.
    """
    config = {
        "spec": "spec.yaml",
        "discovery": {"kind": "kubernetes", "group": installation.group},
        "picker": {"http_host": "0.0.0.0", "http_port": ROUTER_METRICS_PORT},
        "envoy": {"listen": f"0.0.0.0:{ROUTER_PORT}"},
        **sections,
    }
    spec = installation.spec.model_dump(mode="json", exclude_none=True)
    labels = installation.labels("router", installation.router)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": installation.metadata(installation.router, labels),
        "data": {"router.yaml": _yaml(config), "spec.yaml": _yaml(spec)},
    }


def router_deployment(installation: Installation) -> Json:
    """Return the router's Deployment."""
    name = installation.router
    labels = installation.labels("router", name)
    volumes = [
        {"name": "config", "configMap": {"name": name}},
        scratch("tmp", "64Mi"),
        scratch("cache", "256Mi"),  # compiled rules outlive a picker that dies
    ]
    pod = pod_spec(name, _container(installation), volumes)
    pod["terminationGracePeriodSeconds"] = _GRACE_S
    made = deployment(
        installation, name, labels, pod, {"hrl-planner.io/config": _digest(installation)}
    )
    # The next one must know the workers before this one drains.
    made["spec"]["strategy"] = rolling(surge=1, unavailable=0)
    return made


def _container(installation: Installation) -> Json:
    return {
        "name": "router",
        "image": installation.router_image,
        "command": ["python", "-m", "hrl_planner.cli", "router"],
        "args": [f"--config={_CONFIG_FOLDER}/router.yaml"],
        "env": [POD_NAMESPACE, {"name": "XDG_CACHE_HOME", "value": _CACHE_FOLDER}],
        "ports": [
            container_port("http", ROUTER_PORT),
            container_port("metrics", ROUTER_METRICS_PORT),
        ],
        # The first picker compiles the rules.
        "startupProbe": http_probe("/v1/models", "http", periodSeconds=2, failureThreshold=150),
        # Answers also where no worker is there; the supervisor sees to children that die.
        "livenessProbe": http_probe("/v1/models", "metrics", periodSeconds=10, failureThreshold=12),
        "readinessProbe": http_probe("/health", "http", periodSeconds=2, failureThreshold=2),
        "resources": _RESOURCES,
        "securityContext": CONFINED,
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": _CACHE_FOLDER},
        ],
    }


def _service(installation: Installation, labels: dict[str, str]) -> Json:
    ports = [
        {"name": name, "port": port, "protocol": "TCP", "targetPort": name}
        for name, port in (("http", ROUTER_PORT), ("metrics", ROUTER_METRICS_PORT))
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": installation.metadata(installation.router, labels),
        "spec": {"selector": labels, "ports": ports},
    }


def _digest(installation: Installation) -> str:
    """Return what changes with the config, so that a new one starts a new pod."""
    data = router_config(installation)["data"]
    return hashlib.sha256("\n".join(data.values()).encode()).hexdigest()[:16]


def _yaml(data: Json) -> str:
    return yaml.safe_dump(data, sort_keys=False, width=100)
