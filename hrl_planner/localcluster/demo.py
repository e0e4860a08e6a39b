"""A cluster on one machine, from the API server to the tokens: `hrl-planner demo-cluster`.

    real etcd, API server, controllers, scheduler
        Deployments of mock engines, one process a pod  <---- planners (`plan all`) scale them
        ServingGroup, WorkerPools                       <---- and write quotas and flows
    router with Envoy: watches pods and flows, sends each request of the trace to one of them

The trace is replayed against the router while a watcher counts, ten times a second, the GPUs that
pods hold; whatever planners do, that number must not pass the budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client

from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import GROUP, POOLS, VERSION
from hrl_planner.load import LoadOptions, LoadResult, Target, replay
from hrl_planner.localcluster import demo_objects
from hrl_planner.localcluster.controlplane import ControlPlane
from hrl_planner.localcluster.kubelet import Kubelet, Node
from hrl_planner.router.discovery.kubernetes import POOL_LABEL
from hrl_planner.router.local import local_router
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace

_SAMPLE_S = 0.1
_READY_S = 120.0


@dataclass(frozen=True)
class DemoOptions:
    """How the demonstration runs.

    Attributes:
        policy: fields of the group's `policy`: allocator, scaler, checkpoint.
        startup_scale: multiplies the spec's start-up times.
        settle_s: how long a scale target's controller may lag.
        seed: of classes and prompts.
    """

    policy: dict[str, Any] = field(default_factory=dict)
    startup_scale: float = 0.1
    settle_s: float = 3.0
    seed: int = 0


@dataclass(frozen=True)
class PoolState:
    """A pool as `kubectl get wpool` would tell it."""

    name: str
    quota: int
    desired: int
    ready: int
    starting: int
    draining: int


@dataclass
class Watch:
    """What the watcher saw.

    Attributes:
        budget: GPUs by type.
        most: most GPUs that pods held at once, by type.
        samples: how often it looked.
        over: samples above the budget.
        pools: the pools at the last look.
        history: pool name to (seconds, ready) at each change.
    """

    budget: dict[str, int]
    most: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    over: int = 0
    pools: list[PoolState] = field(default_factory=list)
    history: dict[str, list[tuple[float, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoResult:
    """What came of it."""

    load: LoadResult
    watch: Watch


OnState = Callable[[Watch], None]


def run(
    spec: ClusterSpec, trace: Trace, folder: Path, options: DemoOptions, on_state: OnState
) -> DemoResult:
    """Run the whole, and take it down again.

    Args:
        spec: the cluster.
        trace: the load.
        folder: for logs and data.
        options: how.
        on_state: called about once a second.

    Raises:
        KubeError: something did not start.
    """
    nodes = [
        Node(f"node-{kind.lower()}", kind, gpus=count) for kind, count in spec.budget.gpus.items()
    ]
    with ControlPlane.start(folder / "plane") as plane, Kubelet(plane, nodes):
        admin = plane.client()
        demo_objects.install_definitions(admin)
        with plane.namespace("demo") as namespace:
            policy = {"mode": "active", **options.policy}
            demo_objects.create(admin, spec, namespace, policy, options.startup_scale)
            before = os.environ.get("KUBECONFIG")
            os.environ["KUBECONFIG"] = str(plane.kubeconfig)  # for router and planners
            try:
                with watching(admin, spec, namespace) as watch:
                    return asyncio.run(
                        _drive(spec, trace, folder, namespace, options, watch, on_state)
                    )
            finally:
                os.environ.pop("KUBECONFIG")
                if before is not None:
                    os.environ["KUBECONFIG"] = before


async def _drive(
    spec: ClusterSpec,
    trace: Trace,
    folder: Path,
    namespace: str,
    options: DemoOptions,
    watch: Watch,
    on_state: OnState,
) -> DemoResult:
    config = {
        "spec": _spec_file(spec, folder),
        "discovery": {"kind": "kubernetes", "namespace": namespace, "group": spec.name},
        "tokenizer": {"kind": "words"},
    }
    await _until(lambda: _way_is_open(spec, watch))
    async with local_router(config, folder / "router") as router:
        address = router.picker_url.removeprefix("http://")
        planners = await _planners(spec, namespace, folder, options, address)
        ticking = asyncio.create_task(_tell(watch, on_state))
        try:
            target = Target(router.url, spec.model, prompt="ids")
            load = LoadOptions(seed=options.seed, grace_s=60.0)
            result = await replay(trace, target, load, spec=spec)
        finally:
            ticking.cancel()
            planners.terminate()
            await planners.wait()
    return DemoResult(result, watch)


def _spec_file(spec: ClusterSpec, folder: Path) -> str:
    import yaml

    path = folder / "router" / "spec.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)))
    return "spec.yaml"


async def _planners(
    spec: ClusterSpec, namespace: str, folder: Path, options: DemoOptions, router: str
) -> asyncio.subprocess.Process:
    """Start the planners of the group and all its pools, in one process."""
    arguments = ["plan", "all", f"--group={spec.name}", f"--namespace={namespace}"]
    arguments += ["--health-port=0", f"--settle-s={options.settle_s}", f"--router={router}"]
    with (folder / "planners.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hrl_planner.cli", *arguments, stdout=log, stderr=log
        )


async def _until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + _READY_S
    while not holds():
        if time.monotonic() > until_s:
            raise KubeError(f"no way through the pools was open within {_READY_S:g} s")
        await asyncio.sleep(0.2)


def _way_is_open(spec: ClusterSpec, watch: Watch) -> bool:
    """Tell whether engines that together can answer a request are ready."""
    ready = {name for name, rows in watch.history.items() if rows[-1][1]}
    roles = {pool.role for pool in spec.pools if pool.name in ready}
    return "aggregated" in roles or {"prefill", "decode"} <= roles


async def _tell(watch: Watch, on_state: OnState) -> None:
    while True:
        on_state(watch)
        await asyncio.sleep(1.0)


@contextlib.contextmanager
def watching(admin: client.ApiClient, spec: ClusterSpec, namespace: str) -> Iterator[Watch]:
    """Count what pods hold, and note pools, until the block ends."""
    watch = Watch(dict(spec.budget.gpus))
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(admin, spec, namespace, watch, stop))
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def _watch(
    admin: client.ApiClient, spec: ClusterSpec, namespace: str, watch: Watch, stop: threading.Event
) -> None:
    core: Any = client.CoreV1Api(admin)
    objects: Any = client.CustomObjectsApi(admin)
    began_s, looked_s = time.monotonic(), -1.0
    gpus = {pool.name: (pool.gpu_type, pool.gpus_per_replica) for pool in spec.pools}
    while not stop.wait(_SAMPLE_S):
        held = dict.fromkeys(watch.budget, 0)
        ready = dict.fromkeys(gpus, 0)
        for pod in core.list_namespaced_pod(namespace, label_selector=POOL_LABEL).items:
            if pod.status.phase in ("Succeeded", "Failed"):
                continue
            pool = pod.metadata.labels[POOL_LABEL]
            held[gpus[pool][0]] += gpus[pool][1]
            conditions = pod.status.conditions or ()
            serves = any(c.type == "Ready" and c.status == "True" for c in conditions)
            ready[pool] += serves and pod.metadata.deletion_timestamp is None
        watch.samples += 1
        watch.over += any(held[kind] > most for kind, most in watch.budget.items())
        watch.most = {kind: max(n, watch.most.get(kind, 0)) for kind, n in held.items()}
        now_s = time.monotonic() - began_s
        for pool, count in ready.items():
            rows = watch.history.setdefault(pool, [])
            if not rows or rows[-1][1] != count:
                rows.append((now_s, count))
        if now_s - looked_s > 1.0:
            looked_s = now_s
            listed = objects.list_namespaced_custom_object(GROUP, VERSION, namespace, POOLS)
            watch.pools = [_state(item) for item in listed["items"]]


def _state(item: dict[str, Any]) -> PoolState:
    status = item.get("status", {})
    return PoolState(
        item["metadata"]["name"],
        item["spec"].get("quota") or 0,
        *(status.get(key) or 0 for key in ("desired", "ready", "starting", "draining")),
    )
