"""The system's own pods in the demonstration: planners and router, each with an account of its own.

Accounts and Deployments are those that operators install (`hrl_planner.manifests`). What differs
here is what one machine without names and networks of its own demands: pods listen on their own
address, the router on 127.0.0.1, where clients of this machine find it, and one pod per planner
is enough.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml
from kubernetes import client

from hrl_planner.errors import KubeError
from hrl_planner.manifests import Installation, accounts, planner_deployments
from hrl_planner.router.local import free_ports

_CONFIG_AT = "/etc/hrl-planner"
_POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
_NAMESPACE = {
    "name": "POD_NAMESPACE",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
}


@dataclass(frozen=True)
class RouterPorts:
    """Where the router's pod listens, on 127.0.0.1."""

    listen: int
    admin: int
    grpc: int
    http: int

    @staticmethod
    def free() -> RouterPorts:
        """Return ports that nobody listens on."""
        return RouterPorts(*free_ports(4))

    @property
    def url(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.listen}"

    @property
    def metrics(self) -> str:
        """`ip:port` of the picker's HTTP server."""
        return f"127.0.0.1:{self.http}"


def create_system(
    admin: client.ApiClient, installation: Installation, ports: RouterPorts, settle_s: float
) -> None:
    """Create accounts, planners and router.

    Args:
        admin: may do everything.
        installation: what is installed.
        ports: of the router.
        settle_s: how long a scale target's controller may lag.
    """
    _create(admin, accounts(installation))
    _create(admin, _router(installation, ports))
    for deployment in planner_deployments(installation):
        _create(admin, [_here(deployment, ports, settle_s)])


def _here(deployment: dict[str, Any], ports: RouterPorts, settle_s: float) -> dict[str, Any]:
    """Return a planner's Deployment as this machine can run it."""
    made = copy.deepcopy(deployment)
    made["spec"]["replicas"] = 1
    container = made["spec"]["template"]["spec"]["containers"][0]
    container["env"].append(_POD_IP)
    args = [word for word in container["args"] if not word.startswith("--router=")]
    args += [f"--router={ports.metrics}", "--health-host=$(POD_IP)"]
    if args[0] != "global":
        args.append(f"--settle-s={settle_s}")
    container["args"] = args
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        container[probe]["periodSeconds"] = 1
        container[probe]["failureThreshold"] = 120
    return made


def _router(installation: Installation, ports: RouterPorts) -> list[dict[str, Any]]:
    """Return the router's config map and Deployment."""
    name, labels = installation.router, installation.labels("router", installation.router)
    spec = installation.spec
    config = {
        "spec": "spec.yaml",
        "discovery": {"kind": "kubernetes", "group": installation.group},
        "tokenizer": {"kind": "words"},
        "picker": {"grpc": f"127.0.0.1:{ports.grpc}", "http_port": ports.http},
        "envoy": {
            "listen": f"127.0.0.1:{ports.listen}",
            "admin_port": ports.admin,
            "concurrency": 1,
        },
    }
    data = {
        "router.yaml": yaml.safe_dump(config, sort_keys=False),
        "spec.yaml": yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)),
    }
    ready = {"path": "/health", "port": ports.listen, "host": "127.0.0.1"}
    container = {
        "name": "router",
        "image": installation.router_image,
        "command": ["python", "-m", "hrl_planner.cli", "router"],
        "args": [f"--config={_CONFIG_AT}/router.yaml"],
        "env": [_NAMESPACE, {"name": "OMP_NUM_THREADS", "value": "1"}],
        "volumeMounts": [{"name": "config", "mountPath": _CONFIG_AT}],
        "readinessProbe": {"httpGet": ready, "periodSeconds": 1},
    }
    pod = {
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    metadata = installation.metadata(name, labels)
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    ]


def _create(admin: client.ApiClient, objects: Iterable[dict[str, Any]]) -> None:
    core: Any = client.CoreV1Api(admin)  # take plain data
    apps: Any = client.AppsV1Api(admin)
    rbac: Any = client.RbacAuthorizationV1Api(admin)
    leases: Any = client.CoordinationV1Api(admin)
    calls = {
        "ServiceAccount": core.create_namespaced_service_account,
        "ConfigMap": core.create_namespaced_config_map,
        "Role": rbac.create_namespaced_role,
        "RoleBinding": rbac.create_namespaced_role_binding,
        "Lease": leases.create_namespaced_lease,
        "Deployment": apps.create_namespaced_deployment,
    }
    for body in objects:
        try:
            calls[body["kind"]](body["metadata"]["namespace"], body)
        except client.ApiException as error:
            name = body["metadata"]["name"]
            raise KubeError(f"cannot create {body['kind']} {name}: {error.body}") from error
