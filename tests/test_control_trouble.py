"""What is wrong in a cluster: told on the object, by an Event and in the log; the rest goes on.

Each test breaks one thing among four pools that are planned for, on a real API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubernetes")

from kubernetes import client

from benchmarks.cluster.store import wait_until
from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.requests import DeniedError
from hrl_planner.errors import KubeError
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION, definitions
from hrl_planner.kube.resources import Condition
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec
from tests.kube_objects import install_definitions, mirrors_of
from tests.scale_definitions import ODDLY_NAMED, install
from tests.test_control import Site, equal_split

pytestmark = pytest.mark.kube

SPEC = ClusterSpec.load("small")
POOL, OTHER = SPEC.pools[0].name, SPEC.pools[1].name
MERGE = "application/merge-patch+json"


class Broken(Site):
    """Planners that look at the API server itself: for what is broken, no watch can be awaited."""

    def restart(self) -> None:
        self.global_planner = GlobalPlanner(self.connector, SPEC.name, NoMetrics(), lambda: 0.0)
        self.locals = [
            LocalPlanner(self.connector, p.name, NoMetrics(), lambda: 0.0, settle_s=0.0)
            for p in SPEC.pools
        ]

    def catch_up(self) -> None:
        """Nothing lags."""


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> client.ApiClient:
    api = control_plane.client()
    install_definitions(api)
    return api


@pytest.fixture
def site(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[Site]:
    with control_plane.namespace("trouble") as name, mirrors_of(control_plane) as mirrors:
        made = Broken(admin, name, mirrors)
        made.create(1, allocator="static", scaler="quota", mode="active")
        yield made


def patch_pool(site: Site, name: str, spec: dict[str, Any]) -> None:
    site.objects.patch_namespaced_custom_object(
        GROUP, VERSION, site.namespace, POOLS, name, {"spec": spec}, _content_type=MERGE
    )


def told(site: Site, plural: str, name: str) -> dict[str, Condition]:
    """Conditions of an object, whatever else it says."""
    item: Any = site.objects.get_namespaced_custom_object(
        GROUP, VERSION, site.namespace, plural, name
    )
    conditions = item.get("status", {}).get("conditions", [])
    return {c["type"]: Condition.model_validate(c) for c in conditions}


def of_pool(site: Site, name: str = POOL) -> dict[str, Condition]:
    return told(site, POOLS, name)


def of_group(site: Site) -> dict[str, Condition]:
    return told(site, GROUPS, SPEC.name)


def events(site: Site, reason: str, name: str = POOL) -> list[str]:
    found = client.CoreV1Api(site.api).list_namespaced_event(site.namespace).items
    return [e.message for e in found if e.reason == reason and e.involved_object.name == name]


def rounds(site: Site, count: int = 4) -> None:
    """Rounds of all planners, as the process makes them: what fails is logged and tried again."""
    for _ in range(count):
        for planner in (*site.locals, site.global_planner):
            try:
                planner.round()
            except KubeError as error:
                logging.getLogger("round").warning("%s: %s", planner.name, error)


def others_work(site: Site) -> bool:
    """Whether the pools of the other GPU type have what the plan gives them.

    Those of the same type may have to wait: what the broken pool holds is not known.
    """
    replicas, plan = site.replicas(), equal_split()
    others = [pool.name for pool in SPEC.pools if pool.gpu_type != SPEC.pools[0].gpu_type]
    return all(replicas[name] == plan[name] > 1 for name in others)


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


@pytest.fixture
def loosened(admin: client.ApiClient, site: Site) -> Iterator[None]:
    """Definitions that let everything pass, as those of another version might."""
    extensions: Any = client.ApiextensionsV1Api(admin)

    def anything(definition: Any) -> Any:
        body = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        for version in definition["spec"]["versions"]:
            version["schema"]["openAPIV3Schema"] = body
        return definition

    def put(change: Callable[[Any], Any]) -> None:
        for definition in definitions().values():
            name = definition["metadata"]["name"]
            patch = {"spec": {"versions": change(definition)["spec"]["versions"]}}
            extensions.patch_custom_resource_definition(name, patch)

    put(anything)
    yield
    put(lambda definition: definition)


def loose_patch(site: Site, plural: str, name: str, spec: Any) -> None:
    """Patch until the server has taken over the loosened definition."""
    for _ in range(300):
        try:
            site.objects.patch_namespaced_custom_object(
                GROUP, VERSION, site.namespace, plural, name, {"spec": spec}, _content_type=MERGE
            )
            return
        except client.ApiException as error:
            if error.status != 422:
                raise
    raise AssertionError("still refused")


def test_a_pool_that_cannot_be_understood_says_so_itself_and_grants_stop(
    site: Site, loosened: None
) -> None:
    site.until(equal_split())
    loose_patch(site, POOLS, POOL, {"role": "encode"})
    rounds(site)
    condition = of_pool(site)["Decided"]
    assert (condition.status, condition.reason) == ("False", "Unreadable")
    assert "role" in condition.message
    assert of_pool(site)["TargetFound"].status == "True"  # what it said before stays
    assert len(events(site, "Unreadable")) == 1
    assert POOL in of_group(site)["AllPoolsPlanned"].message
    assert site.replicas() == equal_split()
    loose_patch(site, POOLS, POOL, {"role": "prefill"})
    rounds(site)
    assert of_pool(site)["Decided"].status == "True"


def test_a_group_that_cannot_be_understood_says_so_and_its_pools_hold(
    site: Site, loosened: None
) -> None:
    site.until(equal_split())
    loose_patch(site, GROUPS, SPEC.name, {"budget": {"gpus": "many"}})
    rounds(site)
    condition = of_group(site)["Planned"]
    assert (condition.status, condition.reason) == ("False", "Unreadable")
    assert "budget.gpus" in condition.message
    assert len(events(site, "Unreadable", SPEC.name)) == 1
    assert of_pool(site)["Decided"].reason == "GroupUnreadable"
    assert site.replicas() == equal_split()


def allow(site: Site, *rules: tuple[str, str, str]) -> None:
    """Let the account `planner` do what is told: group, resource, verbs; nothing else."""
    rbac: Any = client.RbacAuthorizationV1Api(site.api)
    role = {
        "metadata": {"name": "planner"},
        "rules": [
            {"apiGroups": [group], "resources": resource.split(), "verbs": verbs.split()}
            for group, resource, verbs in rules
        ],
    }
    binding = {
        "metadata": {"name": "planner"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "planner"},
        "subjects": [{"kind": "ServiceAccount", "name": "planner", "namespace": site.namespace}],
    }
    account: Any = {"metadata": {"name": "planner"}}
    client.CoreV1Api(site.api).create_namespaced_service_account(site.namespace, account)
    rbac.create_namespaced_role(site.namespace, role)
    rbac.create_namespaced_role_binding(site.namespace, binding)


READ = (GROUP, "workerpools servinggroups", "get list")
STATUS = (GROUP, "workerpools/status servinggroups/status", "patch")
QUOTAS = (GROUP, "workerpools", "patch")
EVENTS = ("", "events", "create")
PODS = ("", "pods", "list")
TARGETS = ("apps", "deployments deployments/scale", "get")
SCALE = ("apps", "deployments/scale", "update")


@pytest.mark.parametrize(
    ("rules", "kind", "words"),
    [
        ([READ, STATUS, EVENTS, PODS], "TargetFound", 'get resource "deployments/scale"'),
        ([READ, STATUS, EVENTS, TARGETS], "PodsCounted", 'list resource "pods"'),
        (
            [READ, STATUS, EVENTS, PODS, TARGETS],
            "Unhindered",
            'update resource "deployments/scale"',
        ),
    ],
)
def test_what_a_local_planner_may_not_do_stands_on_its_pool_and_the_others_go_on(
    control_plane: ControlPlane, site: Site, rules: Any, kind: str, words: str
) -> None:
    allow(site, *rules)
    api = control_plane.client(service_account=(site.namespace, "planner"))
    connector = Connector(api, site.namespace)
    denied = LocalPlanner(connector, POOL, NoMetrics(), lambda: 0.0, settle_s=0.0)
    site.locals = [denied, *site.locals[1:]]
    rounds(site, 6)
    condition = of_pool(site)[kind]
    assert (condition.status, condition.reason) == ("False", "Denied")
    assert f'User "system:serviceaccount:{site.namespace}:planner"' in condition.message
    assert words in condition.message
    assert len(events(site, "Denied")) == 1
    assert others_work(site)
    assert site.replicas()[POOL] == 1


def test_a_status_that_may_not_be_written_is_told_by_an_event_once_and_by_the_error(
    control_plane: ControlPlane, site: Site
) -> None:
    allow(site, READ, EVENTS, PODS, TARGETS, SCALE)
    api = control_plane.client(service_account=(site.namespace, "planner"))
    local = LocalPlanner(Connector(api, site.namespace), POOL, NoMetrics(), lambda: 0.0)
    for _ in range(3):
        with pytest.raises(DeniedError, match='cannot patch resource "workerpools/status"'):
            local.round()
    assert len(events(site, "Denied")) == 1


def test_quotas_that_may_not_be_written_stand_on_the_group(
    control_plane: ControlPlane, site: Site
) -> None:
    allow(site, READ, STATUS, EVENTS)
    api = control_plane.client(service_account=(site.namespace, "planner"))
    site.global_planner = GlobalPlanner(
        Connector(api, site.namespace), SPEC.name, NoMetrics(), lambda: 0.0
    )
    rounds(site)
    condition = of_group(site)["Unhindered"]
    assert (condition.status, condition.reason) == ("False", "Denied")
    assert 'cannot patch resource "workerpools"' in condition.message
    assert len(events(site, "Denied", SPEC.name)) == 1
    assert set(site.replicas().values()) == {1}
