"""A rebuild on a real API server: pods stop first, and their GPUs go to what takes their place.

Traffic is that of a simulated day on which the same policy rebuilds; replicas are the cluster's
own, placed by its scheduler on machines with as many GPUs as the budget has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from benchmarks.cluster.field import kubelet
from hrl_planner.localcluster import ControlPlane
from hrl_planner.observation import Float64Array
from hrl_planner.planner import loop
from hrl_planner.spec import ClusterSpec
from tests.control_site import Site
from tests.kube_objects import mirrors_of
from tests.test_rebuild import SCARCE, begins, rebuilt

pytestmark = pytest.mark.kube

POLICY = {"allocator": "lp:rebuild_s=900", "scaler": "quota", "mode": "active"}
BEFORE = 32  # steps of the day before the rebuild: the planner's forecast, no longer young
WITHIN = 30  # rounds in which all pods have followed

Counts = dict[str, int]


@cache
def day() -> tuple[list[loop.Step], int]:
    """Return the day's steps and the place of the first that rebuilds."""
    _, steps = rebuilt()
    return steps, begins(steps)[0]


class Traffic:
    """Metrics of a step of that day."""

    def __init__(self) -> None:
        self.step = day()[0][0]

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        seen = self.step.observation
        order = [SCARCE.pool_index(pool.name) for pool in spec.pools]
        return seen.pools[order], seen.classes


def by_pool(values: Float64Array) -> Counts:
    return {p.name: int(n) for p, n in zip(SCARCE.pools, values, strict=True)}


def settled(site: Site) -> bool:
    """Whether the pods there are those asked for, and serve."""
    asked = site.replicas()
    found = {p.name: site.watched.pods(f"app={p.name}") for p in SCARCE.pools}
    return all(n.ready == n.held == asked[name] for name, n in found.items())


def follow(site: Site) -> None:
    """Let controllers, scheduler and kubelet do what was asked for."""
    until_s = time.monotonic() + 20.0
    while not settled(site):
        assert time.monotonic() < until_s, "pods do not follow"
        time.sleep(0.05)


def test_what_serves_makes_room_and_the_budget_holds_on_the_way(
    control_plane: ControlPlane, admin: client.ApiClient
) -> None:
    steps, first = day()
    before, after = (
        by_pool(steps[at].wanted.replicas.astype(np.float64)) for at in (first - 1, first)
    )
    falls = [name for name in after if after[name] < before[name]]
    rises = [name for name in after if after[name] > before[name]]
    assert falls and rises, "this day rebuilds nothing"
    traffic = Traffic()
    with (
        kubelet(control_plane, SCARCE.budget.gpus, site="rebuild"),
        control_plane.namespace("rebuild") as name,
        mirrors_of(control_plane) as mirrors,
    ):
        site = Site(admin, name, mirrors, SCARCE, traffic)
        site.create(before, **POLICY)
        follow(site)
        for step in steps[first - BEFORE : first]:
            site.now_s, traffic.step = step.observation.now_s, step
            site.round()
        assert site.quotas() == site.replicas() == before
        traces = []
        for at in range(first, first + WITHIN):
            site.now_s, traffic.step = steps[at].observation.now_s, steps[at]
            site.round()
            assert all(site.held[kind] <= n for kind, n in SCARCE.budget.gpus.items())
            traces.append(site.replicas())
            follow(site)
            if traces[-1] == after:
                break
        assert traces[-1] == after
        assert "; rebuild" in site.connector.group(SCARCE.name).status.reason
        # Broken before it is made: there was a moment with the one gone and the other not there.
        assert any(
            all(now[name] == after[name] for name in falls)
            and all(now[name] == before[name] for name in rises)
            for now in traces
        )
