"""A cluster on one machine, from the API server to the tokens: `hrl-planner demo-cluster`.

    real etcd, API server, controllers, scheduler
        Deployments of mock engines, one process a pod  <---- planners scale them,
        ServingGroup, WorkerPools                       <---- and write quotas and flows
    router with Envoy: watches pods and flows, sends each request of the trace to one of them

Planners and router are pods as well, each with the account that operators give it. At first they
plan in shadow mode on an idle cluster; when their metrics cover a whole window of it they are told
to act, and in the same moment the trace begins. So a run begins as a simulated one can, and the two
can be compared. A watcher counts meanwhile, ten times a second, the GPUs that pods hold; whatever
planners do, that number must not pass the budget.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client

from hrl_planner.control import Connector
from hrl_planner.errors import KubeError
from hrl_planner.load import LoadOptions, LoadResult, Target, replay
from hrl_planner.localcluster import demo_objects
from hrl_planner.localcluster.controlplane import ControlPlane
from hrl_planner.localcluster.demo_rehearsal import rehearse
from hrl_planner.localcluster.demo_system import RouterPorts, create_system
from hrl_planner.localcluster.demo_watch import Watch, watching
from hrl_planner.localcluster.kubelet import Kubelet, Node
from hrl_planner.manifests import Installation
from hrl_planner.manifests.installation import Layout
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload import Trace

_READY_S = 180.0
_POLL_S = 0.2


@dataclass(frozen=True)
class DemoOptions:
    """How the demonstration runs.

    Attributes:
        policy: fields of the group's `policy`: allocator, scaler, checkpoint.
        layout: a planner pod for the group and one per pool, or one for all.
        settle_s: how long a scale target's controller may lag.
        seed: of classes and prompts.
        grace_s: what requests get after the last was sent.
    """

    policy: dict[str, Any] = field(default_factory=dict)
    layout: Layout = "per-pool"
    settle_s: float = 3.0
    seed: int = 0
    grace_s: float = 60.0


@dataclass(frozen=True)
class DemoResult:
    """What came of it.

    Attributes:
        spec: the cluster.
        trace: the load.
        load: what clients saw.
        watch: what pods and pools did.
        start_s: monotonic time at which the trace began and planners were told to act.
        idle_s: how long planners had watched an idle cluster before.
        accounts: service account of every pod of planners and router, by pod.
    """

    spec: ClusterSpec
    trace: Trace
    load: LoadResult
    watch: Watch
    start_s: float
    idle_s: float
    accounts: dict[str, str]


OnState = Callable[[Watch], None]


def idle_s(spec: ClusterSpec) -> float:
    """Return how long metrics take to cover an idle cluster."""
    clocks = spec.intervals
    return clocks.window_s + clocks.scrape_lag_s + 2.0 * clocks.scrape_s


def run(
    spec: ClusterSpec, trace: Trace, folder: Path, options: DemoOptions, on_state: OnState
) -> DemoResult:
    """Run the whole, and take it down again.

    Args:
        spec: the cluster; its start-up times must be constant.
        trace: the load.
        folder: for logs and data.
        options: how.
        on_state: called about once a second.

    Raises:
        HrlPlannerError: the policy is none for this cluster.
        KubeError: something did not start.
    """
    rehearse(spec, options.policy)
    nodes = [
        Node(f"node-{kind.lower()}", kind, gpus=count) for kind, count in spec.budget.gpus.items()
    ]
    nodes.append(Node("node-system"))
    with ControlPlane.start(folder / "plane") as plane, Kubelet(plane, nodes):
        admin = plane.client()
        demo_objects.install_definitions(admin)
        with plane.namespace("demo") as namespace:
            ports = RouterPorts.free()
            installation = Installation(spec, namespace, layout=options.layout)
            demo_objects.create(admin, spec, namespace, {"mode": "shadow", **options.policy})
            create_system(admin, installation, ports, options.settle_s)
            # A client of its own: the watcher's thread and this one do not share connections.
            with watching(plane.client(), spec, namespace, ports.metrics) as watch:
                site = _Site(admin, spec, installation, ports, watch)
                return asyncio.run(_drive(site, trace, options, on_state))


@dataclass(frozen=True)
class _Site:
    admin: client.ApiClient
    spec: ClusterSpec
    installation: Installation
    ports: RouterPorts
    watch: Watch


async def _drive(site: _Site, trace: Trace, options: DemoOptions, on_state: OnState) -> DemoResult:
    spec, watch, namespace = site.spec, site.watch, site.installation.namespace
    telling = asyncio.create_task(_tell(watch, on_state))
    try:
        accounts = await _until_ready(site)
        watch.phase = "planners watch an idle cluster"
        idle = idle_s(spec)
        await asyncio.sleep(idle)
        watch.phase = "requests"
        demo_objects.activate(site.admin, spec, namespace)
        start_s = time.monotonic()
        target = Target(site.ports.url, spec.model, prompt="ids")
        load = LoadOptions(seed=options.seed, grace_s=options.grace_s)
        result = await replay(trace, target, load, spec=spec)
    finally:
        telling.cancel()
    return DemoResult(spec, trace, result, watch, start_s, idle, accounts)


async def _until_ready(site: _Site) -> dict[str, str]:
    """Wait until engines serve, router and planners are ready, and every planner has reported."""
    patience_s = _READY_S + max(pool.startup.mean_s for pool in site.spec.pools)
    until_s = time.monotonic() + patience_s
    while missing := await asyncio.to_thread(_missing, site):
        site.watch.phase = f"waits for {', '.join(missing)}"
        if time.monotonic() > until_s:
            raise KubeError(f"after {patience_s:.0f} s still missing: {', '.join(missing)}")
        await asyncio.sleep(_POLL_S)
    return {pod.metadata.name: pod.spec.service_account_name for pod in _system_pods(site)}


def _missing(site: _Site) -> list[str]:
    """Return what does not stand yet."""
    watch, spec = site.watch, site.spec
    missing = [
        f"engines of {pool.name}"
        for index, pool in enumerate(spec.pools)
        if watch.now(index)["ready"] < pool.initial
    ]
    pods = _system_pods(site)
    ready = {pod.metadata.labels["app.kubernetes.io/instance"] for pod in pods if _ready(pod)}
    processes = [planner.name for planner in site.installation.planners()]
    missing += [name for name in (*processes, site.installation.router) if name not in ready]
    if missing:
        return missing
    connector = Connector(site.admin, site.installation.namespace)
    if not connector.group(spec.name).status.conditions:
        missing.append("the first plan")
    for pool in connector.pools(spec.name).pools:
        if pool.status.desired is None:
            missing.append(f"the first report of {pool.name}")
    return missing


def _system_pods(site: _Site) -> list[Any]:
    selector = f"app.kubernetes.io/part-of={site.spec.name}"
    core = client.CoreV1Api(site.admin)
    found = core.list_namespaced_pod(site.installation.namespace, label_selector=selector)
    return list(found.items)


def _ready(pod: Any) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


async def _tell(watch: Watch, on_state: OnState) -> None:
    while True:
        on_state(watch)
        await asyncio.sleep(1.0)
