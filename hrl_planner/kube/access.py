"""The way to the API server: for programs of threads, and for those of an event loop.

A kubeconfig that is named goes first, then the service account of the pod one runs in, then
KUBECONFIG or ~/.kube/config.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from kubernetes import client, config
from kubernetes.aio import client as aio_client
from kubernetes.aio import config as aio_config

from hrl_planner.errors import KubeError

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# The library checks few of a kubeconfig's fields: one of another type is any of the last three.
_UNREADABLE = (
    config.ConfigException,
    aio_config.ConfigException,
    OSError,
    yaml.YAMLError,
    ValueError,
    TypeError,
    AttributeError,
)


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
    with _named(kubeconfig):
        if kubeconfig is None and _in_a_pod():
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                _name_of(kubeconfig), client_configuration=configuration
            )
        _check_certificates(configuration)
    # A request that is tried four times over, each time for as long as it may last, holds up all
    # that its planner has to do; the next round tries again anyway.
    configuration.retries = False
    return made_of(configuration)


async def find_configuration(kubeconfig: Path | None = None) -> aio_client.Configuration:
    """Return the same for clients of `kubernetes.aio`; errors as well."""
    configuration = aio_client.Configuration()
    with _named(kubeconfig):
        if kubeconfig is None and _in_a_pod():
            aio_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await aio_config.load_kube_config(  # type: ignore[no-untyped-call]
                _name_of(kubeconfig), client_configuration=configuration
            )
        _check_certificates(configuration)
    return configuration


def own_namespace() -> str:
    """Return the namespace of the pod one runs in, else what POD_NAMESPACE says, else default."""
    if _POD_NAMESPACE.exists():
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    return os.environ.get("POD_NAMESPACE", "default")


@contextmanager
def _named(kubeconfig: Path | None) -> Iterator[None]:
    """Turn what is wrong with the way to the API server into one line that names its file."""
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise KubeError(f"no way to the API server: {_source(kubeconfig)}: {reason}") from error


def _check_certificates(configuration: client.Configuration | aio_client.Configuration) -> None:
    """Read certificates now: clients do so at their first call, far from the name of the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    field = "certificate-authority"
    try:
        if configuration.ssl_ca_cert:
            context.load_verify_locations(configuration.ssl_ca_cert)
        field = "client-certificate or client-key"
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except OSError as error:
        raise ValueError(f"{field}: {error}") from error


def _source(kubeconfig: Path | None) -> str:
    if kubeconfig is None and _in_a_pod():
        return "the pod's service account"
    return f"kubeconfig {_name_of(kubeconfig) or '~/.kube/config'}"


def _in_a_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _name_of(kubeconfig: Path | None) -> str | None:
    """Return a kubeconfig by name; the library reads the variable once, when it is imported."""
    return os.environ.get("KUBECONFIG") if kubeconfig is None else str(kubeconfig)
