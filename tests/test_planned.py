"""What is left to plan for when some pools of a group cannot be planned; without an API server."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("kubernetes")

from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.control.planned import planned
from hrl_planner.control.pool_list import PoolList, taken_targets
from hrl_planner.errors import HrlPlannerError
from hrl_planner.kube import ServingGroup, WorkerPool
from hrl_planner.kube.convert import manifests_of
from hrl_planner.kube.resources import ScaleTargetRef
from hrl_planner.spec import ClusterSpec

SPEC = ClusterSpec.load("small")
H100 = [pool.name for pool in SPEC.pools if pool.gpu_type == "H100"]
COUNTS = st.fixed_dictionaries({pool.name: st.integers(0, 6) for pool in SPEC.pools})


def described(total: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The group and its pools as Kubernetes has them, to break."""
    targets = {p.name: ScaleTargetRef(kind="Deployment", name=p.name) for p in SPEC.pools}
    group, *pools = manifests_of(SPEC, targets)
    if total is not None:
        group["spec"]["budget"]["totalGpus"] = total
    return group, {pool["metadata"]["name"]: pool for pool in pools}


def holding(pools: dict[str, Any], counts: dict[str, int]) -> PoolList:
    for name, count in counts.items():
        pools[name]["spec"]["quota"] = count
        pools[name]["status"] = {"reserved": count}
    return PoolList(tuple(WorkerPool.model_validate(pool) for pool in pools.values()))


@given(COUNTS)
def test_what_a_pool_left_out_counts_is_taken_off_but_never_the_least_of_the_others(
    counts: dict[str, int],
) -> None:
    group, pools = described()
    broken, other = H100
    pools[broken]["spec"]["profile"] = "nothing_like_it"
    made = planned(ServingGroup.model_validate(group), holding(pools, counts))
    least = SPEC.pools[SPEC.pool_index(other)].min_replicas
    assert made.spec.budget.gpus["H100"] == max(SPEC.budget.gpus["H100"] - counts[broken], least)
    assert made.spec.budget.gpus["L40S"] == SPEC.budget.gpus["L40S"]
    assert broken in made.left_out
    assert made.described.budget == SPEC.budget


@given(COUNTS.filter(lambda counts: counts[H100[0]] > 0))  # one that holds nothing hides nothing
def test_pools_that_share_what_nobody_knows_stay_as_they_are(counts: dict[str, int]) -> None:
    group, pools = described()
    pools[H100[0]]["spec"]["gpusPerReplica"] = None
    made = planned(ServingGroup.model_validate(group), holding(pools, counts))
    ranges = {pool.name: (pool.min_replicas, pool.max_replicas) for pool in made.spec.pools}
    stays = counts[H100[1]]
    assert ranges.get(H100[1]) == ((stays, stays) if stays else None)
    for pool in SPEC.pools:
        if pool.gpu_type == "L40S":
            assert ranges[pool.name] == (pool.min_replicas, pool.max_replicas)
    assert made.spec.budget.gpus["H100"] == stays


def test_where_the_total_is_bounded_an_unknown_pool_stops_all() -> None:
    group, pools = described(total=12)
    pools[H100[0]]["spec"]["gpusPerReplica"] = None
    counts = dict.fromkeys(pools, 2)
    made = planned(ServingGroup.model_validate(group), holding(pools, counts))
    assert {(pool.min_replicas, pool.max_replicas) for pool in made.spec.pools} == {(2, 2)}
    assert made.spec.budget.total_gpus == 6


def test_a_pool_that_gives_back_is_not_taken_off() -> None:
    group, pools = described()
    pools[H100[0]]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    made = planned(ServingGroup.model_validate(group), holding(pools, dict.fromkeys(pools, 3)))
    assert made.spec.budget == SPEC.budget


def test_a_pool_nobody_understands_counts_as_all_of_everything() -> None:
    group, pools = described()
    listed = holding(pools, dict.fromkeys(pools, 2))
    strange = PoolList(listed.pools, {"stranger": "role: 'encode' is none"})
    made = planned(ServingGroup.model_validate(group), strange)
    assert {(pool.min_replicas, pool.max_replicas) for pool in made.spec.pools} == {(2, 2)}
    assert made.left_out == {"stranger": "role: 'encode' is none"}


def test_no_pool_to_plan_for_is_an_error_that_says_why() -> None:
    group, pools = described()
    for pool in pools.values():
        pool["spec"]["profile"] = "nothing_like_it"
    with pytest.raises(HrlPlannerError, match=rf"no pool can be planned for: .*{H100[0]}: "):
        planned(ServingGroup.model_validate(group), holding(pools, dict.fromkeys(pools, 1)))


def test_of_pools_of_one_target_the_oldest_has_it_whatever_version_they_name() -> None:
    _, pools = described()
    ages = ("2026-01-03T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    ref = {"kind": "DynamoGraphDeployment", "name": "llm", "component": "Decode"}
    for (name, pool), age, version in zip(
        pools.items(), ages, ("v1beta1", "v1alpha1", "v1beta1"), strict=False
    ):
        pool["metadata"] |= {"creationTimestamp": age, "uid": name}
        pool["spec"]["scaleTargetRef"] = {"apiVersion": f"nvidia.com/{version}", **ref}
    first, oldest, third, _ = pools
    listed = [WorkerPool.model_validate(pool) for pool in pools.values()]
    assert taken_targets(listed) == {first: oldest, third: oldest}
