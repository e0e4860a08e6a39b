"""Global and local planners on a real API server: the quotas, targets and books they leave."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from envs.simulation import Simulation
from hrl_planner.control import GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.localcluster import ControlPlane
from hrl_planner.observation import POOL_FIELDS, Float64Array
from hrl_planner.spec import ClusterSpec
from hrl_planner.workload.curves import steps
from hrl_planner.workload.generators import independent_requests
from hrl_planner.workload.lengths import Lengths
from tests.control_site import MERGE, ROUNDS, SPEC, Site, equal_split
from tests.kube_objects import mirrors_of

pytestmark = pytest.mark.kube


@pytest.fixture
def site(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[Site]:
    with control_plane.namespace("plan") as name, mirrors_of(control_plane) as mirrors:
        yield Site(admin, name, mirrors)


def test_pools_are_scaled_to_the_plan_and_the_budget_is_respected_on_the_way(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    for _ in range(4):
        site.round()
        assert all(site.held[kind] <= n for kind, n in SPEC.budget.gpus.items())
    site.until(equal_split())
    assert all(site.used()[kind] <= n for kind, n in SPEC.budget.gpus.items())


def test_a_cluster_over_budget_at_the_start_only_shrinks_until_it_fits(site: Site) -> None:
    site.create(9, allocator="static", scaler="quota", mode="active")
    before = site.replicas()
    site.round()
    assert all(n <= before[name] for name, n in site.replicas().items())
    site.until(equal_split())


def test_planners_without_memory_go_on_where_others_died(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    for _ in range(3):
        site.locals[0].round()
        site.global_planner.round()
        site.restart()
    site.until(equal_split())


def test_a_target_scaled_by_hand_is_brought_back(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.until(equal_split())
    name = SPEC.pools[0].name
    site.apps.patch_namespaced_deployment_scale(name, site.namespace, {"spec": {"replicas": 20}})
    site.round()
    site.until(equal_split())


def test_shadow_mode_decides_and_reports_and_changes_nothing(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="shadow")
    for _ in range(3):
        site.round()
    assert set(site.replicas().values()) == {1}
    assert set(site.quotas().values()) == {None}
    assert site.connector.group(SPEC.name).status.planned == equal_split()
    assert all(pool.status.reserved == 1 for pool in site.pools().values())


def test_a_dry_run_writes_nothing_at_all(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    versions = {n: p.metadata.resource_version for n, p in site.pools().items()}
    planner = GlobalPlanner(site.connector, SPEC.name, NoMetrics(), lambda: 0.0, dry_run=True)
    assert planner.round().plan is not None
    for pool in SPEC.pools:
        local = LocalPlanner(
            site.connector, pool.name, NoMetrics(), lambda: 0.0, settle_s=0.0, dry_run=True
        )
        assert local.round().error == ""
    assert {n: p.metadata.resource_version for n, p in site.pools().items()} == versions


def test_a_deleted_pool_gives_back_its_gpus_before_it_goes(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.until(equal_split())
    gone = SPEC.pools[0].name
    site.objects.delete_namespaced_custom_object(GROUP, VERSION, site.namespace, POOLS, gone)
    assert gone in site.pools()
    for _ in range(ROUNDS):
        if gone not in site.pools():
            break
        for planner in site.locals:
            if planner.name in site.pools():
                planner.round()
        site.global_planner.round()
    assert gone not in site.pools()
    assert site.replicas()[gone] == 0


def test_without_metrics_the_lp_and_the_rule_hold_what_runs(site: Site) -> None:
    site.create(1, allocator="lp", scaler="rule", mode="active")
    site.until(dict.fromkeys(site.replicas(), 1))
    conditions = {c.type: c for c in site.connector.group(SPEC.name).status.conditions}
    assert {kind: c.status for kind, c in conditions.items()} == {
        "WithinBudget": "True", "Planned": "True", "AllPoolsPlanned": "True", "Unhindered": "True"
    }  # fmt: skip


def test_the_pools_say_what_they_are_asked_for_and_which_quota_they_keep_to(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.until(equal_split())
    site.round()
    for name, pool in site.pools().items():
        status = pool.status
        assert status.desired == status.replicas == equal_split()[name]
        assert status.acknowledged is not None
        assert status.acknowledged.quota == pool.spec.quota
        assert status.acknowledged.sequence == pool.spec.quota_sequence


def test_a_deleted_group_does_not_hold_its_deleted_pools(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.until(equal_split())
    site.objects.delete_namespaced_custom_object(GROUP, VERSION, site.namespace, GROUPS, SPEC.name)
    gone = SPEC.pools[0].name
    site.objects.delete_namespaced_custom_object(GROUP, VERSION, site.namespace, POOLS, gone)
    site.catch_up()
    while site.watched.groups():
        time.sleep(0.01)
    with pytest.raises(KubeError, match=f"servinggroups/{SPEC.name}"):
        site.global_planner.round()
    assert gone not in site.pools()


def test_two_pools_of_one_target_are_scaled_by_the_older_alone(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    first, second = SPEC.pools[0].name, SPEC.pools[1].name
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": first}
    site.objects.patch_namespaced_custom_object(
        GROUP, VERSION, site.namespace, POOLS, second, {"spec": {"scaleTargetRef": ref}},
        _content_type=MERGE,
    )  # fmt: skip
    waits = {planner.name: planner.round().waits for planner in site.locals}
    rivals = {name: wait for name, wait in waits.items() if "the same target" in wait}
    assert set(rivals) < {first, second}
    assert len(rivals) == 1


def test_a_pool_whose_gpus_are_unknown_gets_nothing_and_is_named(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    name = SPEC.pools[0].name
    site.objects.patch_namespaced_custom_object(
        GROUP, VERSION, site.namespace, POOLS, name, {"spec": {"gpusPerReplica": None}},
        _content_type=MERGE,
    )  # fmt: skip
    for _ in range(4):
        site.round()
    assert site.replicas()[name] == 1
    conditions = {c.type: c for c in site.connector.group(SPEC.name).status.conditions}
    assert conditions["AllPoolsPlanned"].status == "False"
    assert name in conditions["AllPoolsPlanned"].message


def test_a_missing_target_is_a_condition_and_the_rest_keeps_working(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    lost = SPEC.pools[0].name
    site.apps.delete_namespaced_deployment(lost, site.namespace)
    for _ in range(6):
        site.round()
    conditions = {c.type: c for c in site.pools()[lost].status.conditions}
    assert conditions["TargetFound"].status == "False"
    plan = equal_split()
    others = {name: n for name, n in site.replicas().items() if name != lost}
    assert others == {name: n for name, n in plan.items() if name != lost}


def test_a_local_planner_without_a_quota_wants_nothing_yet(site: Site) -> None:
    """What a policy makes of missing numbers must not wait for the quota to be carried out."""
    site.create(2, allocator="lp", scaler="rule", mode="active")
    for planner in site.locals:
        done = planner.round()
        assert (done.wanted, done.reason) == (None, "no quota yet")
    assert set(site.replicas().values()) == {2}


def test_a_changed_group_is_planned_for_at_once(site: Site) -> None:
    """The clock stands still here: a plan that waited for the next interval would never come."""
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.until(equal_split())
    assert site.global_planner.round().plan is None
    site.patch_group({"policy": {"allocator": "static:split=initial"}})
    # The resources do not say with how many replicas a pool begins; the least it may have, then.
    site.until({pool.name: pool.min_replicas for pool in SPEC.pools})


def test_pools_that_have_not_reported_keep_what_they_have(site: Site) -> None:
    """A plan that takes them for empty would release what serves; it is made anew once they do."""
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.global_planner.round()
    site.locals[0].round()
    site.catch_up()
    assert set(site.quotas().values()) == {None}
    site.global_planner.round()
    reported = SPEC.pools[0].name
    assert {name for name, quota in site.quotas().items() if quota is not None} <= {reported}
    site.until(equal_split())


def test_the_first_plan_waits_for_reports_but_not_for_ever(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    now_s = 0.0
    planner = GlobalPlanner(
        site.connector, SPEC.name, NoMetrics(), lambda: now_s, look=site.watched, patient=True
    )
    site.catch_up()
    assert planner.round().plan is None
    now_s = SPEC.intervals.global_s + 1.0
    assert planner.round().plan is not None
    site.restart()
    now_s = 0.0
    patient = GlobalPlanner(
        site.connector, SPEC.name, NoMetrics(), lambda: now_s, look=site.watched, patient=True
    )
    assert patient.round().plan is None
    for local in site.locals:
        local.round()
    site.catch_up()
    assert patient.round().plan is not None


class Traffic:
    """Metrics of a simulated cluster under a load."""

    def __init__(self) -> None:
        trace = independent_requests(
            steps([6.0], 120.0, isl=2000, osl=50), seed=1, isl=Lengths(2000), osl=Lengths(50)
        )
        self.simulation = Simulation(SPEC, trace)
        self.simulation.advance_to(100.0)

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        seen = self.simulation.observe()
        order = [SPEC.pool_index(pool.name) for pool in spec.pools]
        return seen.pools[order], seen.classes


def test_between_its_plans_the_policy_hears_the_traffic_and_moves_the_weights(site: Site) -> None:
    site.create(1, allocator="lp", scaler="rule", mode="active")
    for planner in site.locals:
        planner.round()
    now_s = [0.0]
    planner = GlobalPlanner(site.connector, SPEC.name, Traffic(), lambda: now_s[0])
    assert planner.round().plan is not None
    site.objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, site.namespace, GROUPS, SPEC.name, {"status": {"flows": None}},
        _content_type=MERGE,
    )  # fmt: skip
    assert planner.round().heard is None  # nothing is due yet
    now_s[0] += SPEC.intervals.local_s
    assert planner.round().plan is None
    assert set(site.connector.group(SPEC.name).status.flows) == {c.name for c in SPEC.slo_classes}


class Shares:
    """Metrics of which only the attainment is known."""

    share = np.nan

    def look(
        self, spec: ClusterSpec, serving: Mapping[str, int]
    ) -> tuple[Float64Array, Float64Array]:
        rows, classes = NoMetrics().look(spec, serving)
        for name in ("ttft_attainment", "itl_attainment"):
            rows[:, POOL_FIELDS.index(name)] = self.share
        return rows, classes


def test_a_pools_attainment_is_reported_where_it_changes_enough(site: Site) -> None:
    site.create(1, allocator="static", scaler="quota", mode="active")
    site.until(equal_split())
    metrics, name = Shares(), SPEC.pools[0].name
    planner = LocalPlanner(site.connector, name, metrics, lambda: 0.0, settle_s=0.0)

    def reported(share: float) -> tuple[float | None, str]:
        metrics.share = share
        planner.round()
        pool = site.pools()[name]
        return pool.status.attainment, pool.metadata.resource_version

    assert reported(0.9)[0] == 0.9
    before = reported(0.9)
    assert reported(0.912) == before
    assert reported(0.951)[0] == 0.95
    assert reported(np.nan)[0] is None


def test_weights_of_pools_a_class_no_longer_goes_to_are_removed(site: Site) -> None:
    site.create(1, allocator="lp", scaler="rule", mode="active")
    for planner in site.locals:
        planner.round()
    cls, pool = SPEC.slo_classes[0].name, "a-pool-of-old"
    old = {"status": {"flows": {cls: {pool: 1.0}}}}
    site.objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, site.namespace, GROUPS, SPEC.name, old,
        _content_type=MERGE,
    )  # fmt: skip
    GlobalPlanner(site.connector, SPEC.name, Traffic(), lambda: 0.0).round()
    assert pool not in site.connector.group(SPEC.name).status.flows[cls]
