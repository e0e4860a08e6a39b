"""Both levels decide once before anything is started: a bad policy is refused, a good one compiled.

Where numba is installed the first decision after a change of the sources compiles the policy, which
takes a minute; planners of a cluster that is to be watched should not spend it one after another,
and not in the middle of the first requests. What is compiled lies on disk for all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hrl_planner.control.decide import Allocator, Scaler
from hrl_planner.control.pool_list import PoolList
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.resources import ScaleTargetRef, ServingGroup, WorkerPool
from hrl_planner.observation import CLASS_FIELDS, POOL_FIELDS, Float64Array
from hrl_planner.spec import ClusterSpec


class _Light:
    """Metrics of a cluster with next to nothing to do."""

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        tables = []
        for fields, count in ((POOL_FIELDS, spec.pools), (CLASS_FIELDS, spec.slo_classes)):
            row = np.zeros(len(fields))
            row[fields.index("arrivals_rps")] = 1.0
            for length in ("isl", "osl"):
                row[fields.index(f"{length}_mean_tokens")] = 100.0
                row[fields.index(f"{length}_std_tokens")] = 10.0
            tables.append(np.tile(row, (len(count), 1)))
        return tables[0], tables[1]


def rehearse(spec: ClusterSpec, policy: dict[str, Any]) -> None:
    """Let allocator and scaler decide twice.

    Args:
        spec: the cluster.
        policy: fields of the group's `policy`.

    Raises:
        HrlPlannerError: the policy does not exist or does not fit the cluster.
    """
    targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in spec.pools}
    described, *pools = manifests_of(spec, targets)
    described["spec"]["policy"] |= policy
    group = ServingGroup.model_validate(described)
    counts = {pool.name: pool.initial for pool in spec.pools}
    for pool in pools:
        count = counts[pool["metadata"]["name"]]
        pool["spec"]["quota"] = count
        pool["status"] = {"desired": count, "ready": count}
    listed = PoolList(tuple(WorkerPool.model_validate(pool) for pool in pools))
    allocator, scaler = Allocator(_Light()), Scaler(_Light())
    for now_s in (0.0, spec.intervals.global_s):
        allocator.plan(group, listed, now_s)
        allocator.listen(group, listed, now_s)
        scaler.want(group, listed, spec.pools[0].name, now_s)
