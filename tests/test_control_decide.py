"""What a planner makes of a policy it has only just begun to ask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hrl_planner.control.decide import Scaler
from hrl_planner.control.metrics import Float64Array
from hrl_planner.control.pool_list import PoolList
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS
from hrl_planner.spec import ClusterSpec

SPEC = ClusterSpec.load("small")
WINDOW_S = SPEC.intervals.window_s


class FirstPage:
    """Metrics after one page of each worker: gauges are known, rates are not."""

    def __init__(self, waiting: float) -> None:
        self.waiting = waiting

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        rows = np.full((len(spec.pools), len(POOL_FIELDS)), np.nan)
        for field, value in {"waiting": self.waiting, "running": 1.0, "kv_use": 0.1}.items():
            rows[:, POOL_FIELDS.index(field)] = value
        return rows, np.full((len(spec.slo_classes), len(CLASS_FIELDS)), np.nan)


def objects(replicas: int) -> tuple[ServingGroup, PoolList]:
    """A group whose pools all have so many replicas, and may have twice as many."""
    targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in SPEC.pools}
    group, *pools = manifests_of(SPEC, targets)
    group["spec"]["policy"] |= {"scaler": "rule"}
    for pool in pools:
        pool["spec"]["quota"] = 2 * replicas
        pool["status"] = {"desired": replicas, "ready": replicas}
    made = tuple(WorkerPool.model_validate(pool) for pool in pools)
    return ServingGroup.model_validate(group), PoolList(made)


def test_a_new_leader_releases_nothing_before_it_has_seen_two_windows() -> None:
    group, pools = objects(3)
    scaler = Scaler(FirstPage(waiting=0.0))
    first = scaler.want(group, pools, "prefill-h100", 1000.0)
    assert first.replicas == 3 and "too new" in first.reason
    later = scaler.want(group, pools, "prefill-h100", 1001.0 + 2.0 * WINDOW_S)
    assert later.replicas == 2


def test_a_new_leader_adds_replicas_at_once() -> None:
    group, pools = objects(3)
    want = Scaler(FirstPage(waiting=50.0)).want(group, pools, "prefill-h100", 1000.0)
    assert want.replicas > 3
