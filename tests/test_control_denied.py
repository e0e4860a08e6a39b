"""Objects that cannot be understood, and accounts that may not do all they should: told, once.

As in `test_control_trouble.py`, on a real API server among pools that are planned for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.control import Connector, GlobalPlanner, LocalPlanner, NoMetrics
from hrl_planner.control.requests import DeniedError
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION, definitions
from hrl_planner.localcluster import ControlPlane
from tests.control_site import (
    MERGE,
    POOL,
    SPEC,
    Broken,
    Site,
    equal_split,
    events,
    of_group,
    of_pool,
    others_work,
    rounds,
)
from tests.kube_objects import mirrors_of

pytestmark = pytest.mark.kube


@pytest.fixture
def site(control_plane: ControlPlane, admin: client.ApiClient) -> Iterator[Site]:
    with control_plane.namespace("denied") as name, mirrors_of(control_plane) as mirrors:
        made = Broken(admin, name, mirrors)
        made.create(1, allocator="static", scaler="quota", mode="active")
        yield made


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
