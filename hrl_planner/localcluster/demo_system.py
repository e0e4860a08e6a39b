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
from hrl_planner.manifests.installation import Json
from hrl_planner.manifests.router import router_config, router_deployment
from hrl_planner.router.local import free_ports

_POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


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
    planners = [_planner(d, ports, settle_s) for d in planner_deployments(installation)]
    router = [_router_config(installation, ports), _router(installation, ports)]
    _create(admin, [*accounts(installation), *router, *planners])


def _planner(deployment: Json, ports: RouterPorts, settle_s: float) -> Json:
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
    container["readinessProbe"]["periodSeconds"] = 1
    return made


def _router_config(installation: Installation, ports: RouterPorts) -> Json:
    """Return the router's config map, with addresses of this machine."""
    made = router_config(installation)
    config = yaml.safe_load(made["data"]["router.yaml"])
    config["tokenizer"] = {"kind": "words"}  # what mock engines count in
    config["picker"] |= {
        "grpc": f"127.0.0.1:{ports.grpc}", "http_host": "127.0.0.1", "http_port": ports.http,
    }  # fmt: skip
    config["envoy"] |= {
        "listen": f"127.0.0.1:{ports.listen}", "admin_port": ports.admin, "concurrency": 1,
    }  # fmt: skip
    made["data"]["router.yaml"] = yaml.safe_dump(config, sort_keys=False)
    return made


def _router(installation: Installation, ports: RouterPorts) -> Json:
    """Return the router's Deployment as this machine can run it."""
    made = router_deployment(installation)
    container = made["spec"]["template"]["spec"]["containers"][0]
    # The rules are compiled on this machine already.
    container["env"] = [e for e in container["env"] if e["name"] != "XDG_CACHE_HOME"]
    container["env"].append({"name": "OMP_NUM_THREADS", "value": "1"})
    listens = {"http": ports.listen, "metrics": ports.http}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container[probe]["httpGet"]
        get |= {"host": "127.0.0.1", "port": listens[get["port"]]}
        container[probe]["periodSeconds"] = 1
    return made


def _create(admin: client.ApiClient, objects: Iterable[Json]) -> None:
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
