"""Planner processes killed at random on a real API server: GPUs held never exceed the budget.

Every pod stands for a replica that drains for up to two seconds; plans change every three.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.kube.crds import GROUP, GROUPS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec
from tests.kube import deployment, pod_spec
from tests.kube_objects import create_objects, install_definitions

pytestmark = [pytest.mark.kube, pytest.mark.slow]

SPEC = ClusterSpec.load("small")
ROOT = Path(__file__).parent.parent
FOR_S = float(os.environ.get("CHAOS_S", "40"))
DRAIN = "hrl-planner.io/drain"
MERGE = "application/merge-patch+json"


class Drains:
    """Lets deleted pods go after a while, in a thread of its own."""

    def __init__(self, api: client.CoreV1Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._stop = threading.Event()
        self._due: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Drains:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        random = Random(1)
        while not self._stop.wait(0.2):
            for pod in self._api.list_namespaced_pod(self._namespace).items:
                name = pod.metadata.name
                if pod.metadata.deletion_timestamp is None or not pod.metadata.finalizers:
                    continue
                if time.monotonic() > self._due.setdefault(
                    name, time.monotonic() + 2.0 * random.random()
                ):
                    self._let_go(name)

    def _let_go(self, name: str) -> None:
        body = {"metadata": {"finalizers": None}}
        try:
            self._api.patch_namespaced_pod(name, self._namespace, body, _content_type=MERGE)
        except client.ApiException as error:
            if error.status != 404:
                raise


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    api = control_plane.client()
    install_definitions(api)
    with control_plane.namespace("chaos") as name:
        for pool in SPEC.pools:
            body = deployment(pool.name, 1, pod_spec(["true"], pool.gpu_type))
            body["spec"]["template"]["metadata"]["finalizers"] = [DRAIN]
            client.AppsV1Api(api).create_namespaced_deployment(name, body)
        objects = client.CustomObjectsApi(api)
        create_objects(objects, SPEC, name, allocator="static", scaler="quota", mode="active")
        yield name
        for pool in SPEC.pools:
            client.AppsV1Api(api).delete_namespaced_deployment(pool.name, name)
        with Drains(client.CoreV1Api(api), name):
            time.sleep(4.0)


def start(plane: ControlPlane, namespace: str) -> subprocess.Popen[str]:
    args = [sys.executable, "-m", "hrl_planner.cli", "plan", "all", "--group", SPEC.name]
    args += ["--namespace", namespace, "--kubeconfig", str(plane.kubeconfig)]
    args += ["--health-port", "0", "--settle-s", "2"]
    return subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def held(api: client.CoreV1Api, namespace: str) -> dict[str, int]:
    gpus = {pool.name: (pool.gpu_type, pool.gpus_per_replica) for pool in SPEC.pools}
    result = dict.fromkeys(SPEC.budget.gpus, 0)
    for pod in api.list_namespaced_pod(namespace).items:
        kind, each = gpus[pod.metadata.labels["app"]]
        result[kind] += each
    return result


def replan(objects: client.CustomObjectsApi, namespace: str, random: Random) -> None:
    """Shift the plan: other shares for other values of the static policy."""
    policy = random.choice(["static", "static:split=initial"])
    spec: dict[str, Any] = {"policy": {"allocator": policy}}
    spec["intervals"] = {"localS": 1, "globalS": 2}
    objects.patch_namespaced_custom_object(
        GROUP, VERSION, namespace, GROUPS, SPEC.name, {"spec": spec}, _content_type=MERGE
    )


def test_gpus_held_never_exceed_the_budget_while_planners_are_killed(
    control_plane: ControlPlane, namespace: str
) -> None:
    random = Random(0)
    core = client.CoreV1Api(control_plane.client())
    objects = client.CustomObjectsApi(control_plane.client())
    planners: list[subprocess.Popen[str]] = []
    samples, kills, seen = 0, 0, set()
    end_s = time.monotonic() + FOR_S
    next_s = time.monotonic()
    try:
        with Drains(client.CoreV1Api(control_plane.client()), namespace):
            while time.monotonic() < end_s:
                now = held(core, namespace)
                samples += 1
                seen.add(tuple(now.values()))
                assert all(now[kind] <= n for kind, n in SPEC.budget.gpus.items()), now
                if time.monotonic() > next_s:
                    replan(objects, namespace, random)
                    while len(planners) < 2:
                        planners.append(start(control_plane, namespace))
                    if random.random() < 0.4:
                        victim = planners.pop(random.randrange(2))
                        victim.kill()
                        victim.communicate()
                        kills += 1
                    next_s = time.monotonic() + 3.0
                time.sleep(0.1)
    finally:
        for planner in planners:
            planner.kill()
            planner.communicate()
    print(f"{samples} samples, {kills} kills, {len(seen)} states")
    assert kills >= 2
    assert len(seen) >= 3, "replicas moved"
