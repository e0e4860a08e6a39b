"""Ten thousand pods without machines, for `scale`: a stand-in for controllers and kubelets.

Follows the Deployments of a namespace and keeps as many pods of each as it asks for. A pod is
Pending, then Ready after `STARTUP_S`; one that is to go is there, being deleted, for `DRAIN_S`.
Real Deployments, scheduler and kubelet would do the same for ten times the processor time, on a
machine whose processor time is what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

from hrl_planner.localcluster import ControlPlane
from hrl_planner.localcluster.api import Api, Object, Refused

STARTUP_S, DRAIN_S = 8.0, 4.0
_AT_ONCE = 24
_MERGE = "application/merge-patch+json"
_READY = {
    "phase": "Running",
    "conditions": [{"type": "Ready", "status": "True"}],
}


class Pods:
    """See the module; a context manager that stops following.

    Args:
        plane: without controllers.
        namespace: of the Deployments.
    """

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane, self._namespace = plane, namespace
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._wanted: dict[str, Object] = {}
        self._names: dict[str, list[str]] = {}
        self._serial = 0
        self._tasks: set[asyncio.Task[None]] = set()  # keeps them from being collected
        self._busy: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._made = 0
        self.requests = 0

    @property
    def ready(self) -> int:
        """Pods that were made ready and are not being deleted."""
        return self._made

    def __enter__(self) -> Pods:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _run(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments"
        async with Api(self._plane.credentials) as self._api:
            async for kind, seen in self._api.watch(path, ""):
                for item in seen if kind == "LISTED" else [seen]:
                    self._see(item)

    def _see(self, deployment: Object) -> None:
        name = deployment["metadata"]["name"]
        self._wanted[name] = deployment
        if name not in self._busy:
            self._busy.add(name)
            self._begin(self._follow(name))

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, name: str) -> None:
        """Make pods and let them go until there are as many as were asked for last."""
        names = self._names.setdefault(name, [])
        while True:
            deployment = self._wanted[name]
            wanted, generation = (
                deployment["spec"]["replicas"],
                deployment["metadata"]["generation"],
            )
            status = deployment.get("status", {})
            if len(names) == wanted and status.get("observedGeneration") == generation:
                self._busy.discard(name)
                return
            while len(names) < wanted:
                self._serial += 1
                names.append(f"{name}-{self._serial}")
                self._begin(self._live(names[-1], deployment))
            for pod in names[wanted:]:
                self._begin(self._die(pod))
            del names[wanted:]
            path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{name}/status"
            told = {"replicas": wanted, "observedGeneration": generation}
            seen = await self._call("PATCH", path, {"status": told})
            if seen["metadata"]["generation"] >= self._wanted[name]["metadata"]["generation"]:
                self._wanted[name] = seen

    async def _live(self, pod: str, deployment: Object) -> None:
        template = deployment["spec"]["template"]
        metadata = {"name": pod, "labels": template["metadata"]["labels"]}
        body = {"metadata": metadata, "spec": template["spec"] | {"nodeName": "nowhere"}}
        await self._call("POST", self._path, body)
        await asyncio.sleep(STARTUP_S)
        with contextlib.suppress(Refused):  # it may be gone by now
            await self._call("PATCH", f"{self._path}/{pod}/status", {"status": _READY})
            self._made += 1

    async def _die(self, pod: str) -> None:
        self._made -= 1
        with contextlib.suppress(Refused):
            await self._call("DELETE", f"{self._path}/{pod}", {"gracePeriodSeconds": 30})
            await asyncio.sleep(DRAIN_S)
            await self._call("DELETE", f"{self._path}/{pod}", {"gracePeriodSeconds": 0})

    async def _call(self, method: str, path: str, body: Object) -> Object:
        async with self._slots:
            self.requests += 1
            kind = _MERGE if method == "PATCH" else "application/json"
            return await self._api.call_until_answered(method, path, body, content_type=kind)
