"""Planners follow the trained planner that ships, on the cluster it was trained for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from envs.simulation import Simulation
from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner
from hrl_planner.kube.crds import GROUP, POOLS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.observation import ClusterObservation, Float64Array
from hrl_planner.planner import PlanContext, loop
from hrl_planner.planner.checkpoint import digest, shipped
from hrl_planner.planner.registry import make_policy
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.scenarios import find_scenario
from tests.kube import deployment, pod_spec
from tests.kube_objects import create_objects, install_definitions

pytestmark = [pytest.mark.kube, pytest.mark.slow]

SPEC = ClusterSpec.load("reference")
ROOT = Path(__file__).parent.parent
MERGE = "application/merge-patch+json"

# What a planner pod does not have, and what its program must not miss.
REFUSING = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        banned = {"torch", "stable_baselines3", "gymnasium", "pettingzoo", "numba", "envs"}
        if name.partition(".")[0] in banned:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from hrl_planner.cli import main
main()
"""


class Seen:
    """Metrics of a moment."""

    def __init__(self, observation: ClusterObservation) -> None:
        self.rows = observation

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        return self.rows.pools, self.rows.classes


@pytest.fixture(scope="module")
def seen() -> ClusterObservation:
    """The cluster under a steady load, ten minutes after its start."""
    case = find_scenario("steady-no-flap").build(SPEC, seed=0)
    simulation = Simulation(SPEC, case.trace, seed=0)
    policy = make_policy("learned")
    policy.reset(PlanContext(SPEC))
    loop.run(simulation, policy, 600.0)
    return simulation.observe()


@pytest.fixture
def namespace(control_plane: ControlPlane, seen: ClusterObservation) -> Iterator[str]:
    """The same cluster on the API server, as its planners left it."""
    api = control_plane.client()
    install_definitions(api)
    with control_plane.namespace("trained") as name:
        for index, pool in enumerate(SPEC.pools):
            replicas = int(seen.pool(index).target_replicas)
            body = deployment(pool.name, replicas, pod_spec(["true"], pool.gpu_type))
            client.AppsV1Api(api).create_namespaced_deployment(name, body)
        objects = client.CustomObjectsApi(api)
        create_objects(objects, SPEC, name, checkpoint=SPEC.name, mode="active")
        for index, pool in enumerate(SPEC.pools):
            row = seen.pool(index)
            told = {"desired": row.target_replicas, "ready": row.ready, "starting": row.starting}
            status = {key: int(count) for key, count in told.items()}
            patches = (
                ("", {"spec": {"quota": int(row.quota)}}),
                ("_status", {"status": {**status, "reserved": int(row.quota)}}),
            )
            for where, body in patches:
                patch = getattr(objects, f"patch_namespaced_custom_object{where}")
                patch(GROUP, VERSION, name, POOLS, pool.name, body, _content_type=MERGE)
        yield name


def test_the_checkpoint_decides_at_both_levels_and_says_why(
    control_plane: ControlPlane, namespace: str, seen: ClusterObservation
) -> None:
    connector = Connector(control_plane.client(), namespace)
    metrics = Seen(seen)
    done = GlobalPlanner(connector, SPEC.name, metrics, lambda: 600.0).round()
    assert done.error == "" and done.decision is not None
    assert done.decision.interventions == ()
    assert done.decision.plan.reason.startswith("learned: ")
    assert done.decision.digest == digest(shipped(SPEC.name))
    assert connector.group(SPEC.name).status.reason == done.decision.plan.reason
    for pool in SPEC.pools:
        local = LocalPlanner(connector, pool.name, metrics, lambda: 600.0)
        round_ = local.round()
        assert round_.error == "" and round_.decision is not None
        assert round_.decision.interventions == ()
        assert round_.reason.startswith("learned scaler")
        assert connector.pool(pool.name).status.wanted == round_.wanted


def test_a_planner_pod_with_a_checkpoint_needs_no_training_library(
    control_plane: ControlPlane, namespace: str
) -> None:
    where = ["--namespace", namespace, "--kubeconfig", str(control_plane.kubeconfig)]
    arguments = ["plan", "all", "--once", "--dry-run", "--no-metrics", *where]
    done = subprocess.run(
        [sys.executable, "-c", REFUSING, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    decisions = [line["decision"] for line in lines if line["kind"] == "round"]
    assert len(decisions) == len(SPEC.pools) + 1
    # Without metrics the shield holds what runs, and says so.
    assert {entry["cause"] for made in decisions for entry in made["shield"]} == {"missing"}
    assert all("no arrival metrics" in made["reason"] for made in decisions)
