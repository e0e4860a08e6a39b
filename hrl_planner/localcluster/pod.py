"""The life of one pod on its node: start-up time, containers, status, end.

Level-triggered towards the API: whenever something changed, the status as it is then is sent, again
and again until the server takes it; what happened while the server was away is in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from hrl_planner.localcluster.api import STRATEGIC_MERGE, Api, Object, Refused
from hrl_planner.localcluster.container import (
    Container,
    ProcessContainer,
    StandIn,
    Surroundings,
    now,
)
from hrl_planner.localcluster.credentials import Credentials
from hrl_planner.localcluster.podspec import (
    UnrunnableError,
    container_specs,
    drain_s,
    startup_delay_s,
)
from hrl_planner.localcluster.volumes import Volume, volumes_of

_log = logging.getLogger(__name__)

_TOKEN_LIFETIME_S = 86_400


@dataclass(frozen=True)
class Host:
    """What a kubelet offers its pods.

    Attributes:
        api: where status goes.
        session: for probes.
        credentials: of the cluster; pods get kubeconfigs that trust its authority.
        directory: one folder per pod goes here.
        environment: of every process, below the pod's own.
        processes: whether containers are processes, or only reported.
        first_pause_s: before the second restart of a container.
    """

    api: Api
    session: aiohttp.ClientSession
    credentials: Credentials
    directory: Path
    environment: dict[str, str]
    processes: bool
    first_pause_s: float


class Pod:
    """A pod bound to one of our nodes."""

    def __init__(self, pod: Object, address: str, host: Host) -> None:
        metadata = pod["metadata"]
        self._pod = pod
        self._address = address
        self._host = host
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._containers: Sequence[Container] = ()
        self._unrunnable: str | None = None
        self._started_at = now()
        self._ready = ("False", self._started_at)
        self._changed = asyncio.Event()
        self._deletion: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._gone = False
        self._ended = False

    def delete(self, grace_s: float) -> None:
        """Take note that the pod is to end; its containers get this long."""
        if not self._deletion.done():
            self._deletion.set_result(grace_s)

    def vanish(self, grace_s: float = 0.0) -> None:
        """End without a word to the API: it has forgotten the pod, or the kubelet is going."""
        self._gone = True
        self.delete(grace_s)

    async def live(self) -> None:
        """From here to the pod's end in the API."""
        reporting = asyncio.create_task(self._report_changes())
        running = asyncio.create_task(self._run())
        try:
            ends: tuple[asyncio.Future[Any], ...] = (running, self._deletion)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            grace_s = await self._deletion
            if self._containers:
                await asyncio.gather(*(c.terminate(grace_s) for c in self._containers))
                await running
            else:
                await _cancel(running)
            # Not cancelled: a request that is cut off while it connects leaves its socket open.
            self._ended = True
            self._changed.set()
            await reporting
            if not self._gone:
                await self._remove()
        finally:
            await _cancel(running)
            await _cancel(reporting)

    async def _run(self) -> None:
        try:
            delay_s = startup_delay_s(self._pod)
            self._changed.set()
            await asyncio.sleep(delay_s)
            self._containers = await self._make_containers()
        except UnrunnableError as error:
            self._unrunnable = str(error)
            _log.warning("%s: %s", self._path, error)
            self._changed.set()
            return
        await asyncio.gather(*(container.run() for container in self._containers))

    async def _make_containers(self) -> Sequence[Container]:
        spec = self._pod["spec"]
        if not self._host.processes:
            return [
                StandIn(c["name"], c.get("image", ""), self._changed.set, drain_s(self._pod))
                for c in spec["containers"]
            ]
        directory = self._directory()
        directory.mkdir(parents=True, exist_ok=True)
        folders = await self._volumes(directory / "volumes")
        specs = container_specs(self._pod, self._address, folders)
        environment = {**self._host.environment, **await self._service_account(directory)}
        around = Surroundings(
            address=self._address,
            directory=directory,
            environment=environment,
            restart_policy=spec.get("restartPolicy", "Always"),
            grace_s=float(spec.get("terminationGracePeriodSeconds", 30)),
            first_pause_s=self._host.first_pause_s,
            session=self._host.session,
            changed=self._changed.set,
        )
        return [ProcessContainer(container, around) for container in specs]

    def _directory(self) -> Path:
        metadata = self._pod["metadata"]
        return self._host.directory / str(metadata["namespace"]) / str(metadata["name"])

    async def _volumes(self, parent: Path) -> dict[str, Path]:
        """Make the folders of the pod's volumes."""
        folders = {}
        for volume in volumes_of(self._pod):
            folder = folders[volume.name] = parent / volume.name
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in (await self._files(volume)).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return folders

    async def _files(self, volume: Volume) -> dict[str, bytes]:
        if volume.config_map is None:
            return {}
        namespace = self._pod["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/configmaps/{volume.config_map}"
        try:
            return volume.files(await self._host.api.call_until_answered("GET", path))
        except (KeyError, Refused) as error:
            if volume.optional:
                return {}
            raise UnrunnableError(f"volume {volume.name}: {error}") from error

    async def _service_account(self, directory: Path) -> dict[str, str]:
        """Give the pod a token of its service account, as a kubeconfig that its processes find."""
        spec, metadata = self._pod["spec"], self._pod["metadata"]
        name = spec.get("serviceAccountName")
        if not name or spec.get("automountServiceAccountToken") is False:
            return {}
        bound_to = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        body = {"spec": {"expirationSeconds": _TOKEN_LIFETIME_S, "boundObjectRef": bound_to}}
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{name}/token"
        answer = await self._host.api.call_until_answered("POST", path, body)
        token = directory / "token"
        token.touch(mode=0o600)
        token.write_text(answer["status"]["token"])
        user = f"system:serviceaccount:{metadata['namespace']}:{name}"
        kubeconfig = directory / "kubeconfig"
        self._host.credentials.kubeconfig_with_token_file(user, token, kubeconfig)
        return {"KUBECONFIG": str(kubeconfig)}

    async def _report_changes(self) -> None:
        """Until the end, which is reported too."""
        while not self._ended:
            await self._changed.wait()
            self._changed.clear()
            if not self._gone:
                await self._report()

    async def _report(self) -> None:
        """Send the status as it is now; a pod that is gone needs none."""
        metadata = {"uid": self._pod["metadata"]["uid"]}
        body = {"metadata": metadata, "status": self._status()}
        try:
            await self._host.api.call_until_answered(
                "PATCH", f"{self._path}/status", body, content_type=STRATEGIC_MERGE
            )
        except Refused as error:
            if error.status not in (404, 409):
                _log.error("status of a pod: %s", error)

    async def _remove(self) -> None:
        """The last word of a kubelet: nothing runs any more, the object may go."""
        body = {
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self._pod["metadata"]["uid"]},
        }
        with contextlib.suppress(Refused):
            await self._host.api.call_until_answered("DELETE", self._path, body)

    def _status(self) -> dict[str, Any]:
        containers = [container.status() for container in self._containers]
        if not containers:
            waiting = {"reason": "ContainerCreating"}
            if self._unrunnable:
                waiting = {"reason": "CreateContainerConfigError", "message": self._unrunnable}
            containers = [_waiting(c, waiting) for c in self._pod["spec"]["containers"]]
        ready = "True" if all(c["ready"] for c in containers) else "False"
        if ready != self._ready[0]:
            self._ready = (ready, now())
        conditions = [("Initialized", "True", self._started_at)]
        conditions += [(kind, *self._ready) for kind in ("Ready", "ContainersReady")]
        return {
            "phase": _phase(containers, self._pod["spec"].get("restartPolicy", "Always")),
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "hostIP": self._address,
            "startTime": self._started_at,
            "conditions": [
                {"type": kind, "status": status, "lastTransitionTime": since}
                for kind, status, since in conditions
            ],
            "containerStatuses": containers,
        }


def _waiting(container: Object, state: dict[str, str]) -> dict[str, Any]:
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": state},
        "lastState": {},
    }


def _phase(containers: Sequence[dict[str, Any]], restart_policy: str) -> str:
    ends = [c["state"].get("terminated") for c in containers]
    if all(ends) and restart_policy != "Always":
        failed = any(end["exitCode"] for end in ends if end)
        if not failed:
            return "Succeeded"
        if restart_policy == "Never":
            return "Failed"
    begun = all("waiting" not in c["state"] or c["restartCount"] for c in containers)
    return "Running" if begun else "Pending"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
