"""The flags each server of a local control plane starts with, from Kubernetes 1.20 to current.

Servers listen on addresses of the cluster's own network and therefore on their usual ports.
"""

from __future__ import annotations

from pathlib import Path

from hrl_planner.localcluster.credentials import CONTROLLER_MANAGER, SCHEDULER, Credentials
from hrl_planner.localcluster.network import LoopbackNetwork

API_SERVER_PORT = 6443

# Controllers without anything to do where there are no machines, no cloud and no volumes.
_NO_CONTROLLERS = (
    "nodelifecycle", "nodeipam", "route", "service", "attachdetach", "ttl", "csrsigning",
    "csrapproving", "csrcleaner", "bootstrapsigner", "tokencleaner",
)  # fmt: skip
# The default of 20 requests/s would make 10,000 pods in eight minutes; much more than this and the
# API server of a small machine turns the scheduler away.
_CLIENT_SPEED = ("--kube-api-qps=150", "--kube-api-burst=300")


def api_server_address(network: LoopbackNetwork) -> str:
    """Where the API server of a network listens."""
    return network.address(3)


def etcd(network: LoopbackNetwork, data: Path) -> list[str]:
    """One member that talks to the API server in plain HTTP, on loopback."""
    clients, peers = _etcd_url(network), f"http://{network.address(2)}:2380"
    return [
        "--name=local",
        f"--data-dir={data}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=local={peers}",
        # Large custom resource definitions go over the default of 1.5 MiB.
        "--max-request-bytes=10485760",
        "--logger=zap",
        "--log-outputs=stderr",
        "--log-level=warn",
    ]


def api_server(
    network: LoopbackNetwork, credentials: Credentials, *, service_accounts: bool
) -> list[str]:
    """RBAC, tokens of the cluster's own users, signed tokens of service accounts."""
    pki = credentials.directory
    flags = [
        f"--etcd-servers={_etcd_url(network)}",
        f"--bind-address={api_server_address(network)}",
        f"--secure-port={API_SERVER_PORT}",
        # What pods would reach it by; must not be loopback, and nothing here goes through it.
        "--advertise-address=192.0.2.1",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--anonymous-auth=false",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'service_accounts.key'}",
        f"--service-account-signing-key-file={pki / 'service_accounts.key'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # A burst of pods waits its turn instead of being refused and tried again much later.
        "--max-requests-inflight=1000",
        "--max-mutating-requests-inflight=1000",
        "--profiling=false",
    ]
    # Marks new nodes as not ready for the node lifecycle controller, which does not run.
    disabled = ["TaintNodesByCondition"]
    if not service_accounts:
        # Nobody would make them, and no pod would be admitted.
        disabled.append("ServiceAccount")
    return [*flags, f"--disable-admission-plugins={','.join(disabled)}"]


def controller_manager(credentials: Credentials, version: tuple[int, int, int]) -> list[str]:
    """All controllers that have something to do."""
    pki = credentials.directory
    without = ",".join(f"-{name}" for name in _NO_CONTROLLERS)
    return [
        *_client_flags(credentials, CONTROLLER_MANAGER, version),
        f"--service-account-private-key-file={pki / 'service_accounts.key'}",
        f"--root-ca-file={credentials.ca}",
        "--use-service-account-credentials=true",
        f"--controllers=*,{without}",
    ]


def scheduler(credentials: Credentials, version: tuple[int, int, int]) -> list[str]:
    """The scheduler as it is: resources, selectors, taints, back-off of what does not fit."""
    return _client_flags(credentials, SCHEDULER, version)


def _client_flags(credentials: Credentials, user: str, version: tuple[int, int, int]) -> list[str]:
    """A server that only talks to the API server, and serves nothing itself."""
    path = credentials.directory / f"{user.removeprefix('system:')}.kubeconfig"
    credentials.kubeconfig(user, credentials.tokens[user], path)
    flags = [f"--kubeconfig={path}", "--leader-elect=false", "--secure-port=0", *_CLIENT_SPEED]
    # Until 1.24 there was a second, plain port, on by default.
    return flags if version >= (1, 24, 0) else [*flags, "--port=0"]


def _etcd_url(network: LoopbackNetwork) -> str:
    return f"http://{network.address(2)}:2379"
