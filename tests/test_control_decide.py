"""What a planner makes of a policy it has only just begun to ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hrl_planner.control.decide import Allocator, Scaler
from hrl_planner.control.decision import Choice, Level, new_policy
from hrl_planner.control.metrics import Float64Array
from hrl_planner.control.pool_list import PoolList
from hrl_planner.errors import PolicyError
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS
from hrl_planner.spec import ClusterSpec
from tests.networks import write_checkpoint

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


class Numbered:
    """Metrics in which as many requests wait for a pool as its name has letters.

    It remembers the clusters it was asked about: metrics are kept by their description.
    """

    def __init__(self) -> None:
        self.asked: list[ClusterSpec] = []

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        self.asked.append(spec)
        rows = np.full((len(spec.pools), len(POOL_FIELDS)), np.nan)
        rows[:, POOL_FIELDS.index("waiting")] = [len(pool.name) for pool in spec.pools]
        return rows, np.full((len(spec.slo_classes), len(CLASS_FIELDS)), np.nan)


def test_planners_of_both_levels_ask_about_the_same_cluster() -> None:
    """One pool tells no GPU count, so that the other of its type must stay, without replicas."""
    group, listed = objects(2)
    pools = {pool.name: pool.model_dump(by_alias=True) for pool in listed.pools}
    pools["prefill-h100"]["spec"]["gpusPerReplica"] = None
    pools["prefill-h100"]["status"] |= {"reserved": 2}
    pools["decode-h100"]["spec"]["quota"] = 0
    pools["decode-h100"]["status"] |= {"desired": 0, "ready": 0}
    listed = PoolList(tuple(WorkerPool.model_validate(pool) for pool in pools.values()))
    metrics = Numbered()
    plan = Allocator(metrics).plan(group, listed, 1000.0)
    Scaler(metrics).want(group, listed, "decode-l40s", 1000.0)
    assert len(metrics.asked) == 2
    assert metrics.asked[0] == metrics.asked[1]
    names = [pool.name for pool in plan.decision.spec.pools]
    assert names == ["prefill-l40s", "decode-l40s"]
    waiting = plan.decision.observation.pool_field("waiting")
    assert waiting.tolist() == [len(name) for name in names]


@pytest.mark.parametrize("level", ["allocator", "scaler"])
def test_a_checkpoint_without_two_levels_is_refused_by_name(level: Level, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "flat", head="flat")
    with pytest.raises(PolicyError, match=rf"checkpoint {path}: head flat"):
        new_policy(Choice(level, "lp", str(path)))
