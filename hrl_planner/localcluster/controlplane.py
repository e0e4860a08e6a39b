"""A Kubernetes control plane on this machine: etcd, API server, controller manager, scheduler.

The real servers, on a loopback network of their own (`network.py`), with RBAC, TLS and service
account tokens as in any cluster. What is missing is the machines: `kubelet.py` stands in for them.
Servers can be killed, paused and started again one by one, which is what experiments on recovery
need; all of them die with this process.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from kubernetes import client, config

from hrl_planner.errors import LocalClusterError
from hrl_planner.localcluster import commands
from hrl_planner.localcluster.binaries import KubeBinaries, find_binaries
from hrl_planner.localcluster.credentials import ADMIN, Credentials, create_credentials
from hrl_planner.localcluster.network import LoopbackNetwork
from hrl_planner.localcluster.processes import Component

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"

# Stopped in this order, so that no server spends its last seconds looking for another.
_STOP_ORDER = (SCHEDULER, CONTROLLER_MANAGER, API_SERVER, ETCD)


@dataclass
class ControlPlane:
    """A running control plane; a context manager that stops it.

    Attributes:
        directory: logs (`NAME.log`), certificates, data of etcd, kubeconfigs.
        network: where its servers listen, and where pods get their addresses.
        credentials: its authority and tokens.
        components: servers by name.
        kubeconfig: of a cluster administrator.
    """

    directory: Path
    network: LoopbackNetwork
    credentials: Credentials
    components: dict[str, Component]
    kubeconfig: Path
    _clients: list[client.ApiClient] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        directory: Path,
        binaries: KubeBinaries | None = None,
        *,
        controllers: bool = True,
        patience_s: float = 60.0,
    ) -> ControlPlane:
        """Start a control plane with an empty store and wait until it answers.

        Args:
            directory: an empty or new folder.
            binaries: its programs; found as `binaries.find_binaries` says when absent.
            controllers: also start controller manager and scheduler. Without them, objects are
                stored and checked but nothing acts on them, and pods need no service account.
            patience_s: after this long without an answer it is given up.
        """
        binaries = binaries or find_binaries()
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        network = LoopbackNetwork.claim()
        pki = directory / "pki"
        address = commands.api_server_address(network)
        credentials = create_credentials(pki, address, commands.API_SERVER_PORT)
        command_lines = {
            ETCD: commands.etcd(network, directory / "etcd"),
            API_SERVER: commands.api_server(network, credentials, service_accounts=controllers),
        }
        if controllers:
            version = binaries.version()
            command_lines[CONTROLLER_MANAGER] = commands.controller_manager(credentials, version)
            command_lines[SCHEDULER] = commands.scheduler(credentials, version)
        components = {
            name: Component(name, [str(binaries.path(name)), *flags], directory / f"{name}.log")
            for name, flags in command_lines.items()
        }
        kubeconfig = credentials.kubeconfig(
            ADMIN, credentials.tokens[ADMIN], directory / "kubeconfig"
        )
        plane = cls(directory, network, credentials, components, kubeconfig)
        try:
            for name, component in components.items():
                component.start()
                # Controllers that come before their permissions back off for seconds.
                if name == API_SERVER:
                    plane.wait_ready(patience_s)
            plane.wait_ready(patience_s)
        except BaseException:
            plane.stop()
            raise
        return plane

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop all servers and close the clients given out. The folder stays."""
        for api_client in self._clients:
            api_client.close()  # type: ignore[no-untyped-call]
        for name in _STOP_ORDER:
            if name in self.components:
                self.components[name].stop()
        self.network.release()

    def wait_ready(self, patience_s: float = 60.0) -> None:
        """Wait until the API server answers that it is ready, and service accounts are made.

        Servers that were killed are not waited for.

        Raises:
            LocalClusterError: a server it needs ended, or time ran out; with the end of its log.
        """
        self._wait(lambda: self._get("/readyz") == b"ok", API_SERVER, patience_s)
        manager = self.components.get(CONTROLLER_MANAGER)
        if manager is not None and manager.alive:
            self._wait(lambda: self._takes_pods("default"), CONTROLLER_MANAGER, patience_s)

    def kill(self, name: str) -> None:
        """End a server at once (SIGKILL)."""
        self.components[name].kill()

    def restart(self, name: str, patience_s: float = 60.0) -> None:
        """Kill a server if it runs, start it again, and wait until the control plane is ready."""
        self.components[name].kill()
        self.components[name].start()
        self.wait_ready(patience_s)

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """A server that runs but does nothing meanwhile (SIGSTOP, then SIGCONT)."""
        self.components[name].signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.components[name].signal(signal.SIGCONT)

    def client(
        self,
        *,
        user: str | None = None,
        group: str | None = None,
        service_account: tuple[str, str] | None = None,
    ) -> client.ApiClient:
        """A client of the API, as an administrator unless told otherwise; closed with the plane.

        Args:
            user: act as this user (impersonated; the API server then judges by its permissions).
            group: a group the user is in.
            service_account: namespace and name; authenticated by a token made for this client.
        """
        path = self.kubeconfig
        if service_account is not None:
            path = self.service_account_kubeconfig(*service_account)
        made: client.ApiClient = config.new_client_from_config(  # type: ignore[no-untyped-call]
            config_file=str(path)
        )
        if user is not None:
            made.default_headers["Impersonate-User"] = user
        if group is not None:
            made.default_headers["Impersonate-Group"] = group
        self._clients.append(made)
        return made

    def service_account_kubeconfig(
        self, namespace: str, name: str, lifetime_s: int = 86_400
    ) -> Path:
        """Write a kubeconfig with a fresh token, for a process to run as this service account."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": lifetime_s},
        }
        answer = json.loads(
            self._call(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", body)
        )
        path = self.directory / f"kubeconfig-{namespace}-{name}-{secrets.token_hex(4)}"
        user = f"system:serviceaccount:{namespace}:{name}"
        return self.credentials.kubeconfig(user, answer["status"]["token"], path)

    @contextlib.contextmanager
    def namespace(self, prefix: str) -> Iterator[str]:
        """A namespace with a name of its own, ready for pods; its deletion is not waited for."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self._call("/api/v1/namespaces", {"metadata": {"name": name}})
        if CONTROLLER_MANAGER in self.components:
            self._wait(lambda: self._takes_pods(name), CONTROLLER_MANAGER, 90.0)
        try:
            yield name
        finally:
            self._call(f"/api/v1/namespaces/{name}", method="DELETE")

    def _takes_pods(self, namespace: str) -> bool:
        """Whether pods can be created there; raises while they cannot."""
        # Admission wants the service account, servers before 1.24 also a token of its own, as their
        # caches have them: nothing but a pod shows that.
        pod = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        self._call(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
        return True

    def _wait(self, condition: Callable[[], bool], name: str, patience_s: float) -> None:
        """Poll until true; requests that fail meanwhile are what is waited out."""
        deadline = time.monotonic() + patience_s
        while True:
            for needed in (ETCD, API_SERVER, name):
                component = self.components[needed]
                if not component.alive:
                    raise LocalClusterError(f"{component.name} ended:\n{component.log_tail()}")
            with contextlib.suppress(URLError, OSError, ValueError):
                if condition():
                    return
            if time.monotonic() > deadline:
                tail = self.components[name].log_tail()
                raise LocalClusterError(f"{name} is not ready after {patience_s:g} s:\n{tail}")
            time.sleep(0.05)

    def _get(self, path: str) -> bytes:
        return self._call(path, method="GET")

    def _call(self, path: str, body: object = None, method: str = "POST") -> bytes:
        """One request as administrator, without the retries that the generated client adds."""
        request = Request(
            self.credentials.server + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.credentials.tokens[ADMIN]}",
                "Content-Type": "application/json",
            },
            method=method,
        )
        context = ssl.create_default_context(cafile=str(self.credentials.ca))
        try:
            with urlopen(request, timeout=10.0, context=context) as response:
                data: bytes = response.read()
                return data
        except HTTPError as error:
            with error:
                reason = error.read().decode(errors="replace")
            raise URLError(f"{method} {path}: {error.code} {reason}") from error
