"""The definitions on a real API server: installed, defaulted, refused, scaled, printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubernetes")

from kubernetes import client

from hrl_planner.kube import ServingGroup, WorkerPool
from hrl_planner.kube.crds import GROUP, GROUPS, POOLS, VERSION, definitions
from hrl_planner.localcluster import ControlPlane
from hrl_planner.spec import ClusterSpec
from tests.kube_objects import create_objects, install_definitions, manifests

pytestmark = pytest.mark.kube

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> client.CustomObjectsApi:
    admin = control_plane.client()
    install_definitions(admin)
    return client.CustomObjectsApi(admin)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    with control_plane.namespace("kube") as name:
        yield name


@pytest.fixture
def pools(api: client.CustomObjectsApi, namespace: str) -> list[Any]:
    create_objects(api, ClusterSpec.load("small"), namespace)
    found = api.list_namespaced_custom_object(GROUP, VERSION, namespace, POOLS)
    return list(found["items"])


def test_shipped_specs_are_accepted_and_read_back_as_they_were(
    api: client.CustomObjectsApi, namespace: str, pools: list[Any]
) -> None:
    spec = ClusterSpec.load("small")
    assert {WorkerPool.model_validate(p).name for p in pools} == {p.name for p in spec.pools}
    read = api.get_namespaced_custom_object(GROUP, VERSION, namespace, GROUPS, spec.name)
    assert ServingGroup.model_validate(read).spec.budget.gpus == spec.budget.gpus


def test_the_server_fills_in_defaults_of_nested_objects(
    api: client.CustomObjectsApi, namespace: str
) -> None:
    group = manifests(ClusterSpec.load("small"), namespace)[0]
    for absent in ("intervals", "router", "reward", "policy", "kvTransfer"):
        group["spec"].pop(absent, None)
    made = api.create_namespaced_custom_object(GROUP, VERSION, namespace, GROUPS, group)
    assert made["spec"]["intervals"]["localS"] == 10
    assert made["spec"]["policy"] == {"allocator": "lp", "scaler": "rule", "mode": "shadow"}


@pytest.mark.parametrize(
    ("field", "value"), [("role", "both"), ("maxReplicas", 0), ("gpusPerReplica", -1)]
)
def test_the_server_refuses_what_cannot_be(
    api: client.CustomObjectsApi, namespace: str, field: str, value: object
) -> None:
    pool = manifests(ClusterSpec.load("small"), namespace)[1]
    pool["spec"][field] = value
    with pytest.raises(client.ApiException) as refused:
        api.create_namespaced_custom_object(GROUP, VERSION, namespace, POOLS, pool)
    assert refused.value.status == 422
    assert field in refused.value.body


def test_a_pools_scale_is_its_quota(
    api: client.CustomObjectsApi, namespace: str, pools: list[Any]
) -> None:
    name = pools[0]["metadata"]["name"]
    api.patch_namespaced_custom_object_scale(
        GROUP, VERSION, namespace, POOLS, name, {"spec": {"replicas": 3}}
    )
    read = api.get_namespaced_custom_object(GROUP, VERSION, namespace, POOLS, name)
    assert read["spec"]["quota"] == 3


def test_kubectl_shows_what_a_pool_is_and_has(
    control_plane: ControlPlane, namespace: str, pools: list[Any]
) -> None:
    table = client.CustomObjectsApi(control_plane.client()).list_namespaced_custom_object(
        GROUP, VERSION, namespace, POOLS, _headers={"Accept": TABLE}
    )
    names = [c["name"] for c in table["columnDefinitions"] if c.get("priority", 0) == 0]
    assert names == ["Name", "Role", "GPU", "Quota", "Desired", "Ready", "Attainment", "Age"]


def test_checked_in_files_parse_to_what_was_installed() -> None:
    folder = Path(__file__).parent.parent / "deploy" / "crds"
    for name, definition in definitions().items():
        assert yaml.safe_load((folder / name).read_text(encoding="utf-8")) == definition
