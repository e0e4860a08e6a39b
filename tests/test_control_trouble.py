"""What is wrong in a cluster: told on the object, by an Event and in the log; the rest goes on.

Each test breaks one thing among four pools that are planned for, on a real API server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubernetes")

from kubernetes import client

from benchmarks.cluster.store import wait_until
from hrl_planner.control import GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION
from hrl_planner.localcluster import ControlPlane
from tests.control_site import (
    POOL,
    SPEC,
    Broken,
    Site,
    equal_split,
    events,
    of_group,
    of_pool,
    others_work,
    patch_pool,
    rounds,
    told,
)
from tests.kube_objects import mirrors_of
from tests.scale_definitions import ODDLY_NAMED, install

pytestmark = pytest.mark.kube

OTHER = SPEC.pools[1].name


@pytest.fixture
def site(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[Site]:
    with control_plane.namespace("trouble") as name, mirrors_of(control_plane) as mirrors:
        made = Broken(admin, name, mirrors)
        made.create(1, allocator="static", scaler="quota", mode="active")
        yield made


@pytest.mark.parametrize(
    ("ref", "reason", "words"),
    [
        ({"kind": "Deployment", "name": "lost"}, "NotFound", "Deployment lost does not exist"),
        ({"kind": "Deploymint", "name": POOL}, "UnknownKind", "no Deploymint in apps/v1"),
        ({"kind": "DaemonSet", "name": POOL}, "NotScalable", "no scale subresource"),
        (
            {"apiVersion": "example.com/v1", "kind": "Fleet", "name": POOL},
            "UnknownKind",
            "does not know example.com/v1",
        ),
    ],
)
def test_an_unknown_scale_target_is_told_on_the_pool_once_and_goes_when_mended(
    site: Site, caplog: pytest.LogCaptureFixture, ref: Any, reason: str, words: str
) -> None:
    patch_pool(site, POOL, {"scaleTargetRef": ref})
    rounds(site, 6)
    condition = of_pool(site)["TargetFound"]
    assert (condition.status, condition.reason) == ("False", reason)
    assert words in condition.message
    assert [words in message for message in events(site, reason)] == [True]
    assert sum(words in record.message for record in caplog.records) == 1
    assert others_work(site)
    patch_pool(
        site,
        POOL,
        {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": POOL}},
    )
    site.until(equal_split())
    assert of_pool(site)["TargetFound"].status == "True"
    assert len(events(site, "Found")) == 1


def test_a_target_that_was_deleted_holds_gpus_until_its_pods_are_gone(site: Site) -> None:
    site.until(equal_split())
    core = client.CoreV1Api(site.api)
    pod = core.list_namespaced_pod(site.namespace, label_selector=f"app={POOL}").items[0]
    hold: Any = {"metadata": {"finalizers": ["tests.example.com/drains"]}}
    core.patch_namespaced_pod(pod.metadata.name, site.namespace, hold)
    site.apps.delete_namespaced_deployment(POOL, site.namespace)

    def pods() -> int:
        listed = core.list_namespaced_pod(site.namespace, label_selector=f"app={POOL}")
        return len(listed.items)

    try:
        assert wait_until(lambda: pods() == 1, 30.0)
        rounds(site)
        status = site.pools()[POOL].status
        assert (status.draining, status.reserved) == (1, 1)
    finally:
        core.patch_namespaced_pod(
            pod.metadata.name, site.namespace, {"metadata": {"finalizers": None}}
        )
    assert wait_until(lambda: pods() == 0, 30.0)
    rounds(site)
    assert site.pools()[POOL].status.reserved == 0


def test_gpus_of_pods_that_nobody_can_name_stay_reserved_until_somebody_names_them(
    site: Site,
) -> None:
    install(site.api, ODDLY_NAMED)
    group, kind = ODDLY_NAMED["spec"]["group"], ODDLY_NAMED["spec"]["names"]
    fleet = {
        "apiVersion": f"{group}/v1",
        "kind": kind["kind"],
        "metadata": {"name": "it"},
        "spec": {"size": 0},
    }
    site.objects.create_namespaced_custom_object(group, "v1", site.namespace, kind["plural"], fleet)
    site.until(equal_split())
    reserved = equal_split()[POOL]
    ref = {"apiVersion": f"{group}/v1", "kind": kind["kind"], "name": "it"}
    patch_pool(site, POOL, {"scaleTargetRef": ref})
    rounds(site)
    condition = of_pool(site)["PodsCounted"]
    assert (condition.status, condition.reason) == ("False", "NoSelector")
    assert "EngineFleet it does not tell which pods" in condition.message
    assert "spec.podSelector" in condition.message
    assert len(events(site, "NoSelector")) == 1
    assert site.pools()[POOL].status.reserved == reserved > 0
    assert others_work(site)
    patch_pool(site, POOL, {"podSelector": {"app": POOL}})
    rounds(site, 1)
    assert of_pool(site)["PodsCounted"].status == "True"
    assert site.pools()[POOL].status.replicas == reserved


def younger(site: Site, name: str) -> bool:
    """Whether a pool is there and younger than all of the group; one as old is taken away."""
    pools = {pool.name: pool.metadata for pool in site.connector.pools().pools}
    if name not in pools:
        return False
    others = [pools[pool.name].creation_timestamp or "" for pool in SPEC.pools]
    if (pools[name].creation_timestamp or "") > max(others):
        return True
    site.objects.delete_namespaced_custom_object(GROUP, VERSION, site.namespace, POOLS, name)
    return False


def test_a_target_of_another_group_is_left_to_the_older_pool(site: Site) -> None:
    spec = SPEC.model_copy(update={"name": "second", "pools": SPEC.pools[:0]})
    group: Any = site.objects.get_namespaced_custom_object(
        GROUP, VERSION, site.namespace, GROUPS, SPEC.name
    )
    pool: Any = site.objects.get_namespaced_custom_object(
        GROUP, VERSION, site.namespace, POOLS, POOL
    )
    for item, name in ((group, spec.name), (pool, "intruder")):
        item["metadata"] = {"name": name}
        item.pop("status", None)
    pool["spec"] |= {"group": spec.name}
    pool["spec"].pop("quota", None)
    site.objects.create_namespaced_custom_object(GROUP, VERSION, site.namespace, GROUPS, group)
    while not younger(site, "intruder"):  # creation is told in whole seconds
        site.objects.create_namespaced_custom_object(GROUP, VERSION, site.namespace, POOLS, pool)
    intruder = LocalPlanner(site.connector, "intruder", NoMetrics(), lambda: 0.0, settle_s=0.0)
    second = GlobalPlanner(site.connector, spec.name, NoMetrics(), lambda: 0.0)
    for _ in range(4):
        intruder.round()
        second.round()
    condition = of_pool(site, "intruder")["Unhindered"]
    assert (condition.status, condition.reason) == ("False", "TargetTaken")
    assert POOL in condition.message
    assert len(events(site, "TargetTaken", "intruder")) == 1
    left_out = told(site, GROUPS, spec.name)["AllPoolsPlanned"]
    assert left_out.status == "False"
    assert "intruder" in left_out.message
    assert intruder.round().error
    site.until(equal_split())


def test_a_pool_without_gpu_count_freezes_what_it_shares_and_nothing_else(site: Site) -> None:
    site.until(equal_split())
    before = site.replicas()
    patch_pool(site, POOL, {"gpusPerReplica": None})
    rounds(site)
    group = of_group(site)
    assert (group["AllPoolsPlanned"].status, group["AllPoolsPlanned"].reason) == (
        "False", "PoolsLeftOut"
    )  # fmt: skip
    assert f"{POOL}: gpusPerReplica is unknown" in group["AllPoolsPlanned"].message
    assert (group["WithinBudget"].status, group["WithinBudget"].reason) == ("False", "Unknown")
    assert (of_pool(site)["Decided"].status, site.replicas()) == ("True", before)
    assert len(events(site, "PoolsLeftOut", SPEC.name)) == 1
    assert len(events(site, "Unknown", SPEC.name)) == 1


def test_what_a_pool_left_out_holds_is_taken_off_the_budget_of_the_plan(site: Site) -> None:
    """A plan that counts on GPUs of a pool nobody can plan for would never come true."""
    h100 = [pool.name for pool in SPEC.pools if pool.gpu_type == "H100"]
    broken, rest = h100[0], h100[1]
    site.until(equal_split())
    held = site.replicas()[broken]
    patch_pool(site, broken, {"profile": "nothing_like_it"})
    site.restart()  # a plan is due
    rounds(site)
    planned = site.connector.group(SPEC.name).status.planned
    assert broken not in planned, of_group(site)
    assert planned[rest] == min(
        SPEC.budget.gpus["H100"] - held, SPEC.pools[SPEC.pool_index(rest)].max_replicas
    )
    assert site.replicas()[broken] == held
    assert site.replicas()[rest] == planned[rest]
    assert site.connector.group(SPEC.name).status.waits == {}
    message = of_group(site)["AllPoolsPlanned"].message
    assert "nothing_like_it" in message


@pytest.mark.parametrize("damage", ["missing", "not a manifest", "another schema"])
def test_a_checkpoint_that_cannot_be_read_is_told_and_everything_stays(
    site: Site, tmp_path: Path, damage: str
) -> None:
    site.until(equal_split())
    folder = tmp_path / "checkpoint"
    if damage != "missing":
        folder.mkdir()
        broken = {"not a manifest": "[", "another schema": yaml.safe_dump({"schema": 99})}
        (folder / "manifest.yaml").write_text(broken[damage], encoding="utf-8")
    site.patch_group({"policy": {"checkpoint": str(folder)}})
    site.restart()  # a plan is due
    rounds(site)
    condition = of_group(site)["Planned"]
    assert (condition.status, condition.reason) == ("False", "BadCheckpoint")
    assert str(folder) in condition.message
    assert len(events(site, "BadCheckpoint", SPEC.name)) == 1
    for pool in SPEC.pools:
        decided = of_pool(site, pool.name)["Decided"]
        assert (decided.status, decided.reason) == ("False", "BadCheckpoint")
    assert site.replicas() == site.quotas() == equal_split()
    site.patch_group({"policy": {"checkpoint": None}})
    site.restart()
    rounds(site)
    assert of_group(site)["Planned"].status == "True"


def test_a_policy_nobody_knows_is_told(site: Site) -> None:
    site.patch_group({"policy": {"allocator": "oracle", "scaler": "oracle"}})
    site.restart()
    rounds(site, 2)
    assert of_group(site)["Planned"].reason == "BadPolicy"
    assert "oracle" in of_group(site)["Planned"].message


def test_a_pool_without_its_group_is_left_as_it_is_and_says_so(site: Site) -> None:
    site.until(equal_split())
    patch_pool(site, POOL, {"group": "nobody"})
    rounds(site)
    condition = of_pool(site)["Decided"]
    assert (condition.status, condition.reason) == ("False", "NoGroup")
    assert "servinggroup nobody" in condition.message
    assert len(events(site, "NoGroup")) == 1
    assert site.replicas()[POOL] == equal_split()[POOL]
