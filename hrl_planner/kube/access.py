"""The way to the API server: for programs of threads, and for those of an event loop.

A kubeconfig that is named goes first, then the service account of the pod one runs in, then
KUBECONFIG or ~/.kube/config.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from kubernetes import client, config
from kubernetes.aio import client as aio_client
from kubernetes.aio import config as aio_config

from hrl_planner.errors import KubeError

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def blocking_client(
    kubeconfig: Path | None = None,
    made_of: Callable[[client.Configuration], client.ApiClient] = client.ApiClient,
) -> client.ApiClient:
    """Return a client whose calls wait for their answer, and are not repeated by themselves.

    Args:
        kubeconfig: absent: as the module says.
        made_of: makes the client.

    Raises:
        KubeError: where there is no way to an API server.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is None and _in_a_pod():
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                _name_of(kubeconfig), client_configuration=configuration
            )
    except (config.ConfigException, OSError) as error:
        raise KubeError(f"no way to the API server: {error}") from error
    # A request that is tried four times over, each time for as long as it may last, holds up all
    # that its planner has to do; the next round tries again anyway.
    configuration.retries = False
    return made_of(configuration)


async def find_configuration(kubeconfig: Path | None = None) -> aio_client.Configuration:
    """Return the same for clients of `kubernetes.aio`; errors as well."""
    configuration = aio_client.Configuration()
    try:
        if kubeconfig is None and _in_a_pod():
            aio_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await aio_config.load_kube_config(  # type: ignore[no-untyped-call]
                _name_of(kubeconfig), client_configuration=configuration
            )
    except (aio_config.ConfigException, OSError) as error:
        raise KubeError(f"no way to the API server: {error}") from error
    return configuration


def own_namespace() -> str:
    """Return the namespace of the pod one runs in, else what POD_NAMESPACE says, else default."""
    if _POD_NAMESPACE.exists():
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    return os.environ.get("POD_NAMESPACE", "default")


def _in_a_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _name_of(kubeconfig: Path | None) -> str | None:
    """Return a kubeconfig by name; the library reads the variable once, when it is imported."""
    return os.environ.get("KUBECONFIG") if kubeconfig is None else str(kubeconfig)
