"""A stand-in for the machines of a cluster: nodes with GPUs, and pods that run as local processes.

The scheduler binds pods to these nodes by what they ask for; the kubelet watches for bound pods,
runs each pod's commands on an address of the cluster's own loopback network, probes them, reports
status, and ends them with SIGTERM, grace and SIGKILL. Without processes it only reports, which is
enough for ten thousand pods. One kubelet serves all nodes of a cluster, from a thread of its own.

It starts what is bound and knows nothing of an earlier life: pods that ran under a kubelet before
it are started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from hrl_planner.errors import LocalClusterError
from hrl_planner.localcluster.api import STRATEGIC_MERGE, Api, EventKind, Object, Refused
from hrl_planner.localcluster.container import now
from hrl_planner.localcluster.controlplane import ControlPlane
from hrl_planner.localcluster.pod import Host, Pod

GPU_RESOURCE = "nvidia.com/gpu"
# The label by which GPU feature discovery tells the type.
GPU_TYPE_LABEL = "nvidia.com/gpu.product"

_log = logging.getLogger(__name__)
# What processes get between SIGTERM and SIGKILL when the kubelet itself stops.
_LEAVE_GRACE_S = 2.0


@dataclass(frozen=True)
class Node:
    """A machine, as the scheduler sees it.

    Attributes:
        name: of the node.
        gpu_type: value of the label `nvidia.com/gpu.product`; None sets none.
        gpus: how many.
        pods: at most this many pods.
        labels: others, for node selectors.
    """

    name: str
    gpu_type: str | None = None
    gpus: int = 0
    pods: int = 10_000
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_object(self) -> Object:
        """The node object, without its status."""
        labels = {"kubernetes.io/hostname": self.name, **self.labels}
        if self.gpu_type is not None:
            labels[GPU_TYPE_LABEL] = self.gpu_type
        return {"metadata": {"name": self.name, "labels": labels}}

    def status(self) -> Object:
        """A healthy node; processor and memory are not what runs out."""
        resources = {"cpu": "10000", "memory": "100Ti", "pods": str(self.pods)}
        if self.gpus:
            resources[GPU_RESOURCE] = str(self.gpus)
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": now(),
            "lastTransitionTime": now(),
        }
        return {"status": {"capacity": resources, "allocatable": resources, "conditions": [ready]}}


class Kubelet:
    """Runs the pods of a control plane; a context manager that ends them.

    Example:
        with ControlPlane.start(folder) as plane:
            with Kubelet(plane, [Node("h100-0", "H100", gpus=8)]):
                ...
    """

    def __init__(
        self,
        plane: ControlPlane,
        nodes: Sequence[Node],
        *,
        processes: bool = True,
        environment: Mapping[str, str] | None = None,
        first_pause_s: float = 10.0,
    ) -> None:
        """Describe it; `start` or entering it starts it.

        Args:
            plane: with controllers, as the scheduler is one of them.
            nodes: the machines it stands in for.
            processes: False reports pods as running and ready, and runs nothing.
            environment: of pods' processes beside their own; absent, this process's.
            first_pause_s: before the second restart of a container that ends; doubles each time.
        """
        self.pods_directory: Path = plane.directory / "pods"
        self._plane = plane
        self._nodes = {node.name: node for node in nodes}
        self._processes = processes
        self._first_pause_s = first_pause_s
        self._environment = dict(os.environ if environment is None else environment)
        # `python` in a pod's command is this interpreter.
        path = self._environment.get("PATH", os.defpath)
        self._environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
        self._pods: dict[str, tuple[Pod, asyncio.Task[None]]] = {}
        self._ready: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="kubelet", daemon=True)

    def __enter__(self) -> Kubelet:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Register the nodes and begin to run pods; returns when the nodes are known."""
        self._thread.start()
        self._ready.result(timeout=60.0)

    def stop(self) -> None:
        """End all processes. Nodes and pods stay as they are in the API.

        Raises:
            LocalClusterError: it had ended by itself, through a fault of its own.
        """
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended a moment ago
                self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join()
        if self._error is not None:
            raise LocalClusterError(f"the kubelet ended too early: {self._error}") from self._error

    def log(self, namespace: str, pod: str, container: str) -> str:
        """What a container has written so far."""
        path = self.pods_directory / namespace / pod / f"{container}.log"
        if not path.exists():
            raise LocalClusterError(f"{path}: no such log; the container was never started")
        return path.read_text(errors="replace")

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._run())
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                self._error = error
                if not self._ready.done():
                    self._ready.set_exception(error)

    async def _run(self) -> None:
        self._main = asyncio.current_task()
        async with Api(self._plane.credentials) as api, aiohttp.ClientSession() as session:
            host = Host(
                api=api,
                session=session,
                credentials=self._plane.credentials,
                directory=self.pods_directory,
                environment=self._environment,
                processes=self._processes,
                first_pause_s=self._first_pause_s,
            )
            for node in self._nodes.values():
                await _register(api, node)
            self._ready.set_result(None)
            try:
                async for kind, seen in api.watch("/api/v1/pods", "spec.nodeName!="):
                    self._see(kind, seen, host)
            finally:
                await self._leave()

    def _see(self, kind: EventKind, seen: Any, host: Host) -> None:
        if kind == "LISTED":
            listed = {pod["metadata"]["uid"] for pod in seen}
            for uid in self._pods.keys() - listed:
                self._pods[uid][0].vanish()
            for pod in seen:
                self._see_pod(pod, host)
        elif kind == "DELETED":
            if known := self._pods.get(seen["metadata"]["uid"]):
                known[0].vanish()
        else:
            self._see_pod(seen, host)

    def _see_pod(self, pod: Object, host: Host) -> None:
        """Act on a pod as it is, however often it was seen before."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        if pod["spec"]["nodeName"] not in self._nodes:
            return
        finished = pod["status"].get("phase") in ("Succeeded", "Failed")
        if uid not in self._pods:
            if finished and "deletionTimestamp" not in metadata:
                return
            life = Pod(pod, self._plane.network.pod_address(), host)
            task = asyncio.create_task(life.live(), name=metadata["name"])
            task.add_done_callback(lambda done: self._forget(uid, done))
            self._pods[uid] = (life, task)
        if "deletionTimestamp" in metadata:
            self._pods[uid][0].delete(float(metadata.get("deletionGracePeriodSeconds") or 0))

    def _forget(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._pods[uid]
        if not task.cancelled() and (error := task.exception()):
            _log.error("pod %s", task.get_name(), exc_info=error)

    async def _leave(self) -> None:
        """End everything that runs."""
        tasks = []
        for pod, task in self._pods.values():
            pod.vanish(_LEAVE_GRACE_S)
            tasks.append(task)
        if tasks:
            # A pod that is telling its end to a server that is gone would wait for it.
            _, waiting = await asyncio.wait(tasks, timeout=_LEAVE_GRACE_S + 3.0)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def _register(api: Api, node: Node) -> None:
    try:
        await api.call_until_answered("POST", "/api/v1/nodes", node.as_object())
    except Refused as error:
        if error.status != 409:
            raise
    path = f"/api/v1/nodes/{node.name}/status"
    await api.call_until_answered("PATCH", path, node.status(), content_type=STRATEGIC_MERGE)
